// Chooses the CPU kernels for the processor at run time.
#pragma once

#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

#include "../kernels.h"

namespace fastvae::cpu {

// The best compiled set that torch found this CPU capable of; ATEN_CPU_CAPABILITY lowers it. Seen
// outside the library, because the tests' hooks call it.
__attribute__((visibility("default"))) const Kernels& kernels();

// Names of the compiled sets, lowest first.
std::vector<std::string> compiled();

// Whether the processor has instructions for products of this floating dtype.
bool multiplies(at::ScalarType dtype);

}  // namespace fastvae::cpu
