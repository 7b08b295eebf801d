#include "../kernels/likelihoods.h"

namespace fastvae::FASTVAE_DEVICE {

static const LikelihoodKernels* const likelihoods[] = {FASTVAE_EACH_LIKELIHOOD(FASTVAE_POINTER)};

const Kernels kernels = {.name = "CUDA",
                         .evaluate = nullptr,
                         .words = nullptr,
                         .likelihood = likelihoods,
                         FASTVAE_EACH_KERNEL(FASTVAE_ENTRY)};

}  // namespace fastvae::FASTVAE_DEVICE
