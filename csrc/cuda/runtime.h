// What the kernels' host code asks of torch: its stream, its memory, its errors. Implemented in
// runtime.cpp, so that no torch header reaches nvcc.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace fastvae::cuda {

extern const Kernels kernels;

// torch's current stream of the current device, a cudaStream_t.
void* current_stream();

// Throws what the last launch reported.
void check_launch();

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

}  // namespace fastvae::cuda
