#include "../kernels/declarations.h"

namespace fastvae::FASTVAE_DEVICE {

const Kernels kernels = {
    .name = "CUDA", .evaluate = nullptr, .words = nullptr, FASTVAE_EACH_KERNEL(FASTVAE_ENTRY)};

}  // namespace fastvae::FASTVAE_DEVICE
