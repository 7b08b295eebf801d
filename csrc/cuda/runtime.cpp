#include "runtime.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

namespace fastvae::cuda {

void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void check_launch() { C10_CUDA_KERNEL_LAUNCH_CHECK(); }

Tiling tiling(int64_t rows, int64_t columns, int vector, const Cut& cut) {
  return tile(rows, columns, vector, cut);
}

Workspace::Workspace(int64_t bytes) {
  if (bytes > 0)
    data_ = c10::cuda::CUDACachingAllocator::raw_alloc_with_stream(
        static_cast<size_t>(bytes), c10::cuda::getCurrentCUDAStream());
}

Workspace::~Workspace() {
  if (data_) c10::cuda::CUDACachingAllocator::raw_delete(data_);
}

}  // namespace fastvae::cuda
