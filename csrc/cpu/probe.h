// What the tests call of one instruction set: its elementary functions and its raw random words.
#pragma once

#include <type_traits>

#include "../kernels.h"

namespace fastvae::FASTVAE_DEVICE {

std::remove_pointer_t<decltype(Kernels::evaluate)> evaluate;
std::remove_pointer_t<decltype(Kernels::words)> words;

}  // namespace fastvae::FASTVAE_DEVICE
