// Chooses the CPU kernels for the machine that runs.
#pragma once

#include <string>
#include <vector>

#include "../kernels.h"

namespace fastvae::cpu {

// The best compiled set that torch found this CPU capable of; ATEN_CPU_CAPABILITY lowers it.
const Kernels& kernels();

// Names of the compiled sets, lowest first.
std::vector<std::string> compiled();

}  // namespace fastvae::cpu
