// What the kernels' host code needs of torch: its stream, its memory, its errors. runtime.cpp
// implements it, so that no torch header reaches nvcc; benchmarks without torch have their own
// implementation.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../tiling.h"

namespace fastvae::cuda {

extern const Kernels kernels;

// torch's current stream of the current device, a cudaStream_t.
void* current_stream();

// Throws what the last launch reported.
void check_launch();

// tile() of the sizes. A benchmark of the kernels alone tries others.
Tiling tiling(int64_t rows, int64_t columns, int vector, const Cut& cut);

// Memory from torch's allocator, given back in the order of the stream: the kernels launched before
// may still be using it.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);  // may be 0
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

#ifdef __CUDACC__
// A kernel in blocks of kThreads, on torch's stream.
template <class... Parameter, class... Argument>
void launch_kernel(void (*kernel)(Parameter...), int64_t blocks, const Argument&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0,
           static_cast<cudaStream_t>(current_stream())>>>(arguments...);
  check_launch();
}
#endif

}  // namespace fastvae::cuda
