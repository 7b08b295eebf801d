// The kernels of each likelihood, and the table of them.
#pragma once

#include "../likelihoods.h"
#include "declarations.h"

#define FASTVAE_KERNELS_OF_(name) name##_kernels
#define FASTVAE_KERNELS_OF(name) FASTVAE_KERNELS_OF_(name)

namespace fastvae::FASTVAE_DEVICE {

#define FASTVAE_DECLARE(name) extern const LikelihoodKernels FASTVAE_KERNELS_OF(name);
FASTVAE_EACH_LIKELIHOOD(FASTVAE_DECLARE)
#undef FASTVAE_DECLARE

#define FASTVAE_POINTER(name) &FASTVAE_KERNELS_OF(name),

}  // namespace fastvae::FASTVAE_DEVICE
