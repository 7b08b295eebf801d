#include "../../csrc/cuda/runtime.h"

namespace fastvae::cuda {

void* current_stream() { return nullptr; }
void check_launch() {}
Tiling tiling(int64_t rows, int64_t columns, int vector, const Cut& cut) {
  return tile(rows, columns, vector, cut);
}
Workspace::Workspace(int64_t bytes) : data_(::operator new(static_cast<size_t>(bytes))) {}
Workspace::~Workspace() { ::operator delete(data_); }

}  // namespace fastvae::cuda
