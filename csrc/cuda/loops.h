// The loops that every CUDA kernel is made of, by the names of cpu/loops.h: one launch each, and a
// second where several blocks sum one row. tiling.h says which thread takes which elements.
//
// Where all elements of a call have one type (targets: float or bytes too) and lie so that 16 bytes
// can be read at once, the types are known when compiled. Every other call takes the general path:
// the same threads, element by element, in float or double.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "../kernels/values.h"
#include "../tiling.h"
#include "columns.cuh"
#include "operands.cuh"
#include "runtime.h"
#include "sums.cuh"

// What kernels/*.cpp mark the functions with that a loop runs.
#define FASTVAE_LAMBDA __device__

namespace fastvae::cuda {
namespace {

// An input that is one number for all elements, read where it is used: it may lie on the device.
struct Scalar {
  Input input;
  template <class T>
  __device__ explicit operator T() const {
    if (input.data == nullptr) return static_cast<T>(input.value);
    T one[1];
    read_any(input.dtype, input.data, 0, 1, one);
    return one[0] * static_cast<T>(input.value);
  }
};

inline Scalar scalar(const Input& input) { return {input}; }

// What a loop reads and writes.
template <int NI, int NO>
struct Operands {
  Extent extent;
  Tiling tiling;
  Input in[NI];
  Output out[NO > 0 ? NO : 1];
  Sums sums;
  double* partial;  // [rows, segments], where a row has several
};

// The kernel leaves a key that was drawn for this call where the backward pass finds it.
template <int NI, int NO>
__device__ __forceinline__ void keep_keys(const Operands<NI, NO>& op) {
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
#pragma unroll
  for (int i = 0; i < NI; ++i) {
    if (op.in[i].drawn == nullptr) continue;
    const Key key = key_of(op.in[i]);
    op.in[i].drawn[0] = key.seed;
    op.in[i].drawn[1] = key.offset;
  }
}

// A function whose first input is a factor, for all rows, that leaves nothing to do where it is 1:
// known on the device alone, and nobody waits for it.
template <class F>
struct UnlessOne {
  F f;
  template <class... T>
  __device__ __forceinline__ auto operator()(T... x) const {
    return f(x...);
  }
};
template <class F>
constexpr bool stops_at_one = false;
template <class F>
constexpr bool stops_at_one<UnlessOne<F>> = true;

template <class T, class Stored, Sum sum, class... In, int NO, class F, size_t... I>
__device__ __forceinline__ void run_row(const Operands<sizeof...(In), NO>& op, const Place& place,
                                        const F& f, RowSum<T, sum>& total,
                                        std::index_sequence<I...>) {
  constexpr int V = Stored::vector(), NI = sizeof...(In);
  const std::tuple<Source<T, Stored, In>...> source{
      Source<T, Stored, In>(op.extent, op.in[I], place.row)...};
  if constexpr (stops_at_one<F>) {
    if (std::get<0>(source).fixed == T(1)) return;
  }
  int64_t to[NO > 0 ? NO : 1];
#pragma unroll
  for (int o = 0; o < NO; ++o) to[o] = row_offset(op.extent, op.out[o], place.row);
  for (int64_t column = place.first; column < place.end; column += place.step) {
    const int64_t left = place.end - column;
    const int n = !Stored::any || left >= V ? V : static_cast<int>(left);
    T x[NI][V], y[NO > 0 ? NO : 1][V];
    (std::get<I>(source).read(column, n, x[I]), ...);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto r = f(x[I][v]...);
#pragma unroll
      for (int o = 0; o < NO; ++o) y[o][v] = r.value[o];
      if (v < n) total.add(r.term, r.factor);
    }
#pragma unroll
    for (int o = 0; o < NO; ++o) write<T, Stored>(op.out[o], to[o] + column, n, y[o]);
    total.advance(V);
  }
  total.flush();
}

template <class T, class Stored, Sum sum, int NO, class F, class... In>
__global__ void __launch_bounds__(kThreads, resident_blocks<T, Stored, In...>)
    walk(const __grid_constant__ Operands<sizeof...(In), NO> op, const F f) {
  const Place place = place_of(op.tiling, blockIdx.x, threadIdx.x);
  keep_keys(op);
  RowSum<T, sum> total;
  const bool has_row = place.row < op.tiling.rows;
  if (has_row)
    run_row<T, Stored, sum, In...>(op, place, f, total, std::index_sequence_for<In...>());
  if constexpr (sum != Sum::none) {
    const double whole = group_sum(total.total, op.tiling.lanes, threadIdx.x);
    if (!has_row || place.lane != 0) return;
    if (op.tiling.segments > 1)
      op.partial[place.group] = whole;
    else
      store_sum(op.sums, place.row, whole);
  }
}

// Over the rows of the data; what f returns is summed over the K samples of each.
template <class T, class Stored, class... In, int NO, class F, size_t... I>
__device__ __forceinline__ void fold_row(const Operands<sizeof...(In), NO>& op, const Place& place,
                                         const F& f, std::index_sequence<I...>) {
  constexpr int V = Stored::vector(), NI = sizeof...(In);
  for (int64_t column = place.first; column < place.end; column += place.step) {
    const int64_t left = place.end - column;
    const int n = !Stored::any || left >= V ? V : static_cast<int>(left);
    T y[NO][V] = {};
    for (int64_t k = 0; k < op.extent.K; ++k) {
      T x[NI][V];
      (Source<T, Stored, In>(op.extent, op.in[I], k * op.extent.B + place.row)
           .read(column, n, x[I]),
       ...);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const auto r = f(x[I][v]...);
#pragma unroll
        for (int o = 0; o < NO; ++o) y[o][v] += r.value[o];
      }
    }
#pragma unroll
    for (int o = 0; o < NO; ++o)
      write<T, Stored>(op.out[o], place.row * op.out[o].stride_b + column, n, y[o]);
  }
}

template <class T, class Stored, int NO, class F, class... In>
__global__ void __launch_bounds__(kThreads, resident_blocks<T, Stored, In...>)
    walk_folding(const __grid_constant__ Operands<sizeof...(In), NO> op, const F f) {
  const Place place = place_of(op.tiling, blockIdx.x, threadIdx.x);
  keep_keys(op);
  if (place.row < op.tiling.rows)
    fold_row<T, Stored, In...>(op, place, f, std::index_sequence_for<In...>());
}

// A function of f's terms alone, with no outputs.
template <class F>
struct Term {
  F f;
  template <class... T>
  __device__ __forceinline__ auto operator()(T... x) const {
    return term_and_values(f(x...));
  }
};

template <class T, class Stored, Sum sum, bool folding, int NO, class F, class... In>
void launch(const Extent& extent, const Sums& sums, const Output* outputs, const F& f,
            const In&... in) {
  Operands<sizeof...(In), NO> op{
      extent,  tiling(folding ? extent.B : extent.K * extent.B, extent.D, Stored::vector()),
      {in...}, {},
      sums,    nullptr};
  for (int o = 0; o < NO; ++o) op.out[o] = outputs[o];
  const Tiling& t = op.tiling;
  if (t.blocks == 0) return;
  const bool in_parts = sum != Sum::none && t.segments > 1;
  const Workspace workspace(in_parts ? t.rows * t.segments * int64_t{sizeof(double)} : 0);
  op.partial = static_cast<double*>(workspace.data());
  if constexpr (folding)
    launch_kernel(walk_folding<T, Stored, NO, F, In...>, t.blocks, op, f);
  else
    launch_kernel(walk<T, Stored, sum, NO, F, In...>, t.blocks, op, f);
  if (in_parts)
    launch_kernel(sum_segments, ceil_div(t.rows, kThreads / kWarp), op.partial, t.rows, t.segments,
                  sums);
}

template <Sum sum, bool folding, int NO, class F, class... In>
void launch_in_precision(const Extent& extent, const Sums& sums, const Output* outputs, const F& f,
                         const In&... in) {
  with_types<NO>(
      extent, outputs,
      [&]<class T, class Types>() {
        launch<T, Types, sum, folding, NO>(extent, sums, outputs, f, in...);
      },
      in...);
}

// The loops by name.

template <Sum sum = Sum::terms, class F, class... In>
void row_sum(const Extent& extent, const Sums& sums, const F& f, const In&... in) {
  launch_in_precision<sum, false, 0>(extent, sums, nullptr, Term<F>{f}, in...);
}

template <Sum sum = Sum::terms, int NO, class F, class... In>
void row_sum_and_map(const Extent& extent, const Sums& sums, const Output (&outputs)[NO],
                     const F& f, const In&... in) {
  launch_in_precision<sum, false, NO>(extent, sums, outputs, f, in...);
}

template <int NO, class F, class... In>
void map(const Extent& extent, const Output (&outputs)[NO], const F& f, const In&... in) {
  launch_in_precision<Sum::none, false, NO>(extent, {}, outputs, f, in...);
}

template <int NO, class F, class... In>
void map_unless_one(const Extent& extent, const Output (&outputs)[NO], const F& f,
                    const PerRow& factor, const In&... in) {
  launch_in_precision<Sum::none, false, NO>(extent, {}, outputs, UnlessOne<F>{f}, factor, in...);
}

template <int NO, class F, class... In>
void map_folding(const Extent& extent, const Output (&outputs)[NO], const F& f, const In&... in) {
  launch_in_precision<Sum::none, true, NO>(extent, {}, outputs, f, in...);
}

template <int NO, int NC, class F, class... In>
void map_and_column_sum(const Extent& extent, const Output (&outputs)[NO],
                        const Sums (&columns)[NC], const F& f, const In&... in) {
  launch_columns_in_precision<NO, NC>(extent, outputs, columns, f, in...);
}

template <int NC, class F, class... In>
void column_sum(const Extent& extent, const Sums (&columns)[NC], const F& f, const In&... in) {
  launch_columns_in_precision<0, NC>(extent, nullptr, columns, f, in...);
}

template <int NO, class F, class... C>
void total(const Sums (&outputs)[NO], const F& f, const C&... columns) {
  Totals<NO, sizeof...(C)> op{{}, {columns...}};
  for (int o = 0; o < NO; ++o) op.out[o] = outputs[o];
  launch_kernel(sum_columns<NO, sizeof...(C), F>, 1, op, f);
}

}  // namespace
}  // namespace fastvae::cuda
