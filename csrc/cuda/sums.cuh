// Sums over the elements of a row, over the segments of a row that several blocks share, and over
// columns of row sums. Their order depends on the sizes alone, and no atomics are used.
#pragma once

#include <utility>

#include "../kernels/values.h"
#include "../tiling.h"

namespace fastvae::cuda {
namespace {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kFlush = 64;  // elements summed in float before double takes over; 2^64 is finite

// The sum of a row's terms as one thread sees it.
template <class T, Sum sum>
struct RowSum {
  double total = 0;
  T run = 0, product = 0;  // product less one, as in cpu/loops.h
  int count = 0;

  __device__ __forceinline__ void add(T weight, T size, T factor) {
    if (weight != T(0)) run += weight * size;
    if constexpr (sum == Sum::logs) product = product * (T(1) + factor) + factor;
  }

  // After every `n` elements.
  __device__ __forceinline__ void advance(int n) {
    count += n;
    if (count >= kFlush) flush();
  }

  __device__ __forceinline__ void flush() {
    if constexpr (sum == Sum::logs) run += math::log1p(product);
    total += static_cast<double>(run);
    run = product = 0;
    count = 0;
  }
};

template <class T>
struct RowSum<T, Sum::none> {
  __device__ __forceinline__ void add(T, T, T) {}
  __device__ __forceinline__ void advance(int) {}
  __device__ __forceinline__ void flush() {}
};

// The sum over a group of lanes, in its first; all threads of the block take part.
__device__ __forceinline__ double group_sum(double x, int lanes, int thread) {
  for (int offset = (lanes < kWarp ? lanes : kWarp) / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(kFullWarp, x, offset);
  if (lanes <= kWarp) return x;
  __shared__ double of_warp[kThreads / kWarp];
  if (thread % kWarp == 0) of_warp[thread / kWarp] = x;
  __syncthreads();
  x = of_warp[0];
  for (int w = 1; w < kThreads / kWarp; ++w) x += of_warp[w];
  return x;
}

__device__ __forceinline__ void store_sum(const Sums& sums, int64_t row, double sum) {
  if (sums.dtype == Dtype::f64)
    static_cast<double*>(sums.data)[row] = sum;
  else
    static_cast<float*>(sums.data)[row] = static_cast<float>(sum);
}

// The sums of rows that were cut into segments, in the order of the segments; a warp for each row.
[[maybe_unused]] __global__ void __launch_bounds__(kThreads)
    sum_segments(const double* partial, int64_t rows, int64_t segments, Sums sums) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  double total = 0;
  if (row < rows)
    for (int64_t s = lane; s < segments; s += kWarp) total += partial[row * segments + s];
  total = group_sum(total, kWarp, threadIdx.x);
  if (row < rows && lane == 0) store_sum(sums, row, total);
}

// What `total` reads and writes.
template <int NO, int NC>
struct Totals {
  Sums out[NO];
  Column column[NC];
};

template <class S>
__device__ __forceinline__ double sum_between(const S* from, int64_t first, int64_t end) {
  double total = 0;
#pragma unroll 8  // so many loads on their way at once
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads) total += from[i];
  return total;
}

// The sum of a column's rows from `first` to `end`, in all threads of a block.
__device__ __forceinline__ double block_total(const Column& column, int64_t first, int64_t end) {
  if (end > column.rows) end = column.rows;
  double total = column.sums.dtype == Dtype::f64
                     ? sum_between(static_cast<const double*>(column.sums.data), first, end)
                     : sum_between(static_cast<const float*>(column.sums.data), first, end);
  total = group_sum(total, kThreads, threadIdx.x);
  __syncthreads();  // before the next sum takes the same shared memory
  return total;
}

// Of columns that are longer than a block should read alone: the sums of `rows` rows each, one for
// each block.
template <int NC>
struct ColumnParts {
  Column column[NC];
  int64_t rows, parts;
  double* partial;  // [NC, parts]
};

template <int NC>
__global__ void __launch_bounds__(kThreads)
    sum_parts_of_columns(const __grid_constant__ ColumnParts<NC> op) {
#pragma unroll
  for (int c = 0; c < NC; ++c) {
    const int64_t first = int64_t{blockIdx.x} * op.rows;
    const double sum = block_total(op.column[c], first, first + op.rows);
    if (threadIdx.x == 0) op.partial[c * op.parts + blockIdx.x] = sum;
  }
}

template <class F, int NO, int NC, size_t... C>
__device__ __forceinline__ auto of_columns(const Totals<NO, NC>& op, const F& f,
                                           std::index_sequence<C...>) {
  const double totals[] = {block_total(op.column[C], 0, op.column[C].rows)...};
  return f(totals[C]...);
}

template <int NO, int NC, class F>
__global__ void __launch_bounds__(kThreads)
    sum_totals(const __grid_constant__ Totals<NO, NC> op, const F f) {
  const auto result = of_columns(op, f, std::make_index_sequence<NC>());
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int o = 0; o < NO; ++o) store_sum(op.out[o], 0, result.value[o]);
}

}  // namespace
}  // namespace fastvae::cuda
