// Parallel loops without a torch header, for files that are compiled per instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace fastvae::cpu {

// Calls body(context, begin, end) on torch's intra-op threads over parts of [0, n), each of at
// least `grain` items. The body must not throw.
void run_parallel(int64_t n, int64_t grain, void (*body)(const void* context, int64_t, int64_t),
                  const void* context);

// Whether numbers below 2^-126 are taken for 0, on each of torch's intra-op threads, of which this
// is the first: `on` has a value for each, or its last one stands for the rest. Returns how it was.
std::vector<bool> set_flush_denormal(const std::vector<bool>& on);

namespace {

template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  run_parallel(
      n, grain,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
      },
      &f);
}

}  // namespace
}  // namespace fastvae::cpu
