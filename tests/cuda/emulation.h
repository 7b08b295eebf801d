// A GPU made of fibers, for machines without one: kernels run thread by thread on the CPU, and what
// they compute can be tested. Included before everything else by the compiler's option; there is
// no speed and no race in it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#undef __shared__
#define __shared__ static  // one block runs at a time
#undef __forceinline__
#define __forceinline__ inline
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

struct Index {
  unsigned x;
};
inline Index blockIdx, threadIdx;

// The threads of a block, each of which runs up to its next barrier in turn.
class EmulatedBlock {
 public:
  static constexpr unsigned kThreads = 256;

  static void run(const std::function<void()>& thread) {
    static EmulatedBlock block;
    body = &thread;
    block.run_all();
  }

  // All threads must come here before any goes on.
  static void barrier() {
    Fiber& fiber = fibers[threadIdx.x];
    ++fiber.barriers;
    swapcontext(&fiber.context, &scheduler);
  }

  static inline uint64_t exchange[kThreads];  // of a shuffle

 private:
  struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    unsigned barriers;
    bool done;
  };

  static void enter() {
    (*body)();
    fibers[threadIdx.x].done = true;
  }

  void run_all() {
    for (Fiber& fiber : fibers) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &scheduler;
      fiber.barriers = 0;
      fiber.done = false;
      makecontext(&fiber.context, enter, 0);
    }
    for (unsigned running = kThreads, round = 1; running > 0; ++round) {
      for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) {
        Fiber& fiber = fibers[threadIdx.x];
        if (fiber.done) continue;
        swapcontext(&scheduler, &fiber.context);
        if (fiber.done) --running;
      }
      // Whoever waits at a barrier waits for all that have not ended before it.
      unsigned most = 0;
      for (const Fiber& fiber : fibers) most = fiber.barriers > most ? fiber.barriers : most;
      for (const Fiber& fiber : fibers)
        if (fiber.barriers < most) {
          std::fputs("a thread ended before a barrier that others wait at\n", stderr);
          std::abort();
        }
    }
  }

  static inline std::vector<Fiber> fibers{kThreads};
  static inline ucontext_t scheduler;
  static inline const std::function<void()>* body;
};

inline void __syncthreads() { EmulatedBlock::barrier(); }

inline double __shfl_xor_sync(unsigned, double x, int mask) {
  static_assert(sizeof(x) == sizeof(uint64_t));
  __builtin_memcpy(&EmulatedBlock::exchange[threadIdx.x], &x, sizeof(x));
  EmulatedBlock::barrier();
  __builtin_memcpy(&x, &EmulatedBlock::exchange[threadIdx.x ^ static_cast<unsigned>(mask)],
                   sizeof(x));
  EmulatedBlock::barrier();
  return x;
}

inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

template <class... Parameter, class... Argument>
void launch_kernel(void (*kernel)(Parameter...), int64_t blocks, const Argument&... arguments) {
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    EmulatedBlock::run([&] { kernel(arguments...); });
}
