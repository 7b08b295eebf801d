// Sums of each column over the rows. One launch computes the partial sums of each block, and a
// second one adds them up, in an order that depends on the sizes alone.
#pragma once

#include <type_traits>
#include <utility>

#include "../tiling.h"
#include "operands.cuh"
#include "runtime.h"
#include "sums.cuh"

namespace fastvae::cuda {
namespace {

// What such a loop reads and writes.
template <int NI, int NO>
struct ColumnOperands {
  Extent extent;
  ColumnTiling tiling;
  Input in[NI];
  Output out[NO > 0 ? NO : 1];
  double* partial;  // [sums, columns, parts]
};

template <class T, class Stored, int NC, class... In, int NO, class F, size_t... I>
__device__ __forceinline__ void sum_over_rows(const ColumnOperands<sizeof...(In), NO>& op,
                                              const ColumnPlace& place, const F& f,
                                              std::index_sequence<I...>) {
  constexpr int V = Stored::vector(), NI = sizeof...(In);
  const int64_t left = op.tiling.columns - place.column;
  const int n = !Stored::any || left >= V ? V : static_cast<int>(left);
  double total[NC][V] = {};
  T run[NC][V] = {};
  int count = 0;
  const auto flush = [&] {
#pragma unroll
    for (int c = 0; c < NC; ++c) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        total[c][v] += static_cast<double>(run[c][v]);
        run[c][v] = 0;
      }
    }
    count = 0;
  };
  for (int64_t row = place.row; row < place.end; row += place.step) {
    T x[NI][V], y[NO > 0 ? NO : 1][V];
    const Row at = row_of(op.extent, row);
    (Source<T, Stored, In>(op.extent, op.in[I], at).read(place.column, n, x[I]), ...);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto r = f(x[I][v]...);
#pragma unroll
      for (int o = 0; o < NO; ++o) y[o][v] = r.value[o];
#pragma unroll
      for (int c = 0; c < NC; ++c) run[c][v] += r.value[NO + c];
    }
#pragma unroll
    for (int o = 0; o < NO; ++o)
      write<T, Stored>(op.out[o], offset_of(op.out[o], at) + place.column, n, y[o]);
    if (++count == kFlush) flush();
  }
  flush();
#pragma unroll
  for (int c = 0; c < NC; ++c) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (v < n)
        op.partial[((c * op.tiling.columns) + place.column + v) * op.tiling.parts + place.part] =
            total[c][v];
  }
}

template <class T, class Stored, int NC, int NO, class F, class... In>
__global__ void __launch_bounds__(kThreads, Stored::any ? 1 : 2)
    walk_columns(const __grid_constant__ ColumnOperands<sizeof...(In), NO> op, const F f) {
  const ColumnPlace place = column_place_of(op.tiling, blockIdx.x, threadIdx.x);
  if (place.column < op.tiling.columns)
    sum_over_rows<T, Stored, NC, In...>(op, place, f, std::index_sequence_for<In...>());
}

template <class T, class Stored, int NO, int NC, class F, class... In>
void launch_columns(const Extent& extent, const Output* outputs, const Sums* columns, const F& f,
                    const In&... in) {
  ColumnOperands<sizeof...(In), NO> op{
      extent, tile_columns(extent.K * extent.B, extent.D, Stored::vector()), {in...}, {}, nullptr};
  for (int o = 0; o < NO; ++o) op.out[o] = outputs[o];
  const ColumnTiling& t = op.tiling;
  if (t.columns == 0) return;
  const int64_t parts = t.columns * t.parts;
  const Workspace workspace(NC * parts * int64_t{sizeof(double)});
  op.partial = static_cast<double*>(workspace.data());
  if (t.blocks > 0) launch_kernel(walk_columns<T, Stored, NC, NO, F, In...>, t.blocks, op, f);
  for (int c = 0; c < NC; ++c)
    if (columns[c].data)
      launch_kernel(sum_segments, ceil_div(t.columns, kThreads / kWarp), op.partial + c * parts,
                    t.columns, t.parts, columns[c]);
}

template <int NO, int NC, class F, class... In>
void launch_columns_in_precision(const Extent& extent, const Output* outputs, const Sums* columns,
                                 const F& f, const In&... in) {
  with_types<NO>(
      extent, outputs,
      [&]<class T, class Types>() {
        launch_columns<T, Types, NO, NC>(extent, outputs, columns, f, in...);
      },
      in...);
}

}  // namespace
}  // namespace fastvae::cuda
