#include "../../csrc/cuda/runtime.h"

namespace fastvae::cuda {

void* current_stream() { return nullptr; }
void check_launch() {}
Tiling tiling(int64_t rows, int64_t columns, int vector, bool summed, int least) {
  return tile(rows, columns, vector, summed, lanes_for(rows, columns, vector, least));
}
Workspace::Workspace(int64_t bytes) : data_(::operator new(static_cast<size_t>(bytes))) {}
Workspace::~Workspace() { ::operator delete(data_); }

}  // namespace fastvae::cuda
