#include "../kernels/likelihoods.h"
#include "probe.h"

#define FASTVAE_STRING(x) #x
#define FASTVAE_NAME(x) FASTVAE_STRING(x)

namespace fastvae::FASTVAE_DEVICE {

static const LikelihoodKernels* const likelihoods[] = {FASTVAE_EACH_LIKELIHOOD(FASTVAE_POINTER)};

const Kernels kernels = {.name = FASTVAE_NAME(CPU_CAPABILITY),
                         .evaluate = evaluate,
                         .words = words,
                         .likelihood = likelihoods,
                         FASTVAE_EACH_KERNEL(FASTVAE_ENTRY)};

}  // namespace fastvae::FASTVAE_DEVICE
