#include "parallel.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <limits>

namespace fastvae::cpu {

// torch's own parallel_for, through its C interface: at::parallel_for is a template that runs
// serially in a file compiled without OpenMP, and linking OpenMP could bring a second thread pool.
void run_parallel(int64_t n, int64_t grain, void (*body)(const void* context, int64_t, int64_t),
                  const void* context) {
  struct Call {
    void (*body)(const void*, int64_t, int64_t);
    const void* context;
  } call{body, context};
  if (n <= grain) {
    if (n > 0) body(context, 0, n);
    return;
  }
  torch_parallel_for(
      0, n, grain,
      [](int64_t begin, int64_t end, void* call) {
        const Call* c = static_cast<const Call*>(call);
        c->body(c->context, begin, end);
      },
      &call);
}

std::vector<bool> set_flush_denormal(const std::vector<bool>& on) {
  const int threads = at::get_num_threads();
  std::vector<char> was_on(threads);  // of bytes, which threads may write at once
  // An item for each thread. torch.set_flush_denormal alone changes the calling one.
  parallel_for(threads, 1, [&](int64_t, int64_t) {
    const volatile float smallest = std::numeric_limits<float>::min();
    const size_t thread = at::get_thread_num();
    was_on[thread] = smallest / 2 == 0;
    at::globalContext().setFlushDenormal(on[std::min(thread, on.size() - 1)]);
  });
  return {was_on.begin(), was_on.end()};
}

}  // namespace fastvae::cpu
