// The loops that every CUDA kernel is made of, with the names of cpu/loops.h. Each takes one
// launch, and a second one where several blocks have a part of one sum. tiling.h says which thread
// takes which elements.
//
// Where all elements of a call have one type (targets may also be float or bytes) and are aligned
// so that 16 bytes can be read at once, the types are known at compile time. Every other call takes
// the general path: the same threads, element by element, in float or double.
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

// A function that takes some numbers after the elements. Each thread reads them once: `ready`.
template <class F, int N>
struct WithNumbers {
  static constexpr bool is_long = cuda::is_long<F>;
  F f;
  Scalar number[N];

  template <class T>
  struct Ready {
    const F& f;
    T number[N];
    template <size_t... I, class... X>
    __device__ __forceinline__ auto call(std::index_sequence<I...>, X... x) const {
      return f(x..., number[I]...);
    }
    template <class... X>
    __device__ __forceinline__ auto operator()(X... x) const {
      return call(std::make_index_sequence<N>(), x...);
    }
  };
};

template <class F, class... Number>
WithNumbers<F, sizeof...(Number)> with_numbers(const F& f, const Number&... numbers) {
  return {f, {scalar(numbers)...}};
}

// A function of f's terms alone, with no outputs.
template <class F>
struct Term {
  static constexpr bool is_long = cuda::is_long<F>;
  F f;
  template <class... T>
  __device__ __forceinline__ auto operator()(T... x) const {
    return term_and_values(f(x...));
  }
};

template <class T, class F>
__device__ __forceinline__ const F& ready(const F& f) {
  return f;
}

template <class T, class F, int N>
__device__ __forceinline__ auto ready(const WithNumbers<F, N>& bound) {
  typename WithNumbers<F, N>::template Ready<T> result{bound.f, {}};
#pragma unroll
  for (int i = 0; i < N; ++i) result.number[i] = T(bound.number[i]);
  return result;
}

template <class T, class F>
__device__ __forceinline__ auto ready(const Term<F>& term) {
  return Term<std::decay_t<decltype(ready<T>(term.f))>>{ready<T>(term.f)};
}

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
  const Row row = row_of(op.extent, place.row);
  const std::tuple<Source<T, Stored, In>...> source{
      Source<T, Stored, In>(op.extent, op.in[I], row)...};
  if constexpr (stops_at_one<F>) {
    if (std::get<0>(source).fixed == T(1)) return;
  }
  int64_t to[NO > 0 ? NO : 1];
#pragma unroll
  for (int o = 0; o < NO; ++o) to[o] = offset_of(op.out[o], row);
  const auto& formula = ready<T>(f);
  // Of short numbers a thread fetches the next vector before it works on this one: they are so few
  // bytes that the memory would wait meanwhile.
  constexpr bool ahead = Stored::is_short && !(is_noise<In> || ...);
  std::tuple<typename Source<T, Stored, In>::Fetched...> fetched;
  if (ahead && place.first < place.end) fetched = {std::get<I>(source).fetch(place.first)...};
  for (int64_t column = place.first; column < place.end; column += place.step) {
    const int64_t left = place.end - column;
    const int n = !Stored::any || left >= V ? V : static_cast<int>(left);
    T x[NI][V], y[NO > 0 ? NO : 1][V];
    if constexpr (ahead) {
      const auto now = fetched;
      if (left > place.step) fetched = {std::get<I>(source).fetch(column + place.step)...};
      (std::get<I>(source).read(column, n, std::get<I>(now), x[I]), ...);
    } else {
      (std::get<I>(source).read(column, n, x[I]), ...);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto r = formula(x[I][v]...);
#pragma unroll
      for (int o = 0; o < NO; ++o) y[o][v] = r.value[o];
      if (v < n) total.add(r.weight, r.size, r.factor);
    }
#pragma unroll
    for (int o = 0; o < NO; ++o) write<T, Stored>(op.out[o], to[o] + column, n, y[o]);
    total.advance(V);
  }
  total.flush();
}

template <class T, class Stored, Sum sum, int NO, class F, class... In>
__global__ void __launch_bounds__(kThreads, resident_blocks<T, Stored, F, In...>)
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
  const auto& formula = ready<T>(f);
  for (int64_t column = place.first; column < place.end; column += place.step) {
    const int64_t left = place.end - column;
    const int n = !Stored::any || left >= V ? V : static_cast<int>(left);
    T y[NO][V] = {};
    for (int64_t k = 0; k < op.extent.K; ++k) {
      T x[NI][V];
      const Row row{k, place.row};
      (Source<T, Stored, In>(op.extent, op.in[I], row).read(column, n, x[I]), ...);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const auto r = formula(x[I][v]...);
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
__global__ void __launch_bounds__(kThreads, resident_blocks<T, Stored, F, In...>)
    walk_folding(const __grid_constant__ Operands<sizeof...(In), NO> op, const F f) {
  const Place place = place_of(op.tiling, blockIdx.x, threadIdx.x);
  keep_keys(op);
  if (place.row < op.tiling.rows)
    fold_row<T, Stored, In...>(op, place, f, std::index_sequence_for<In...>());
}

// Whether the rows of an operand follow one another, and nothing in it depends on the row.
template <class In>
bool is_run(const Extent& extent, const In& in) {
  if (in.kind == Input::Kind::elements) return in.stride_b == extent.D;
  if (in.kind == Input::Kind::row) return in.stride_b == 0 && in.stride_k == 0;
  return in.kind != Input::Kind::shared && in.kind != Input::Kind::gathered &&
         in.kind != Input::Kind::sparse;
}

// Where nothing is by row, the rows of each sample are one long row: rows that are no multiple of a
// vector are then read in vectors, and what is done once for a row is done less often.
template <Sum sum, int NO, class... In>
Extent in_runs(const Extent& extent, const Output* outputs, const In&... in) {
  bool runs = sum == Sum::none && (is_run(extent, in) && ...);
  for (int o = 0; o < NO; ++o)
    runs = runs && (outputs[o].data == nullptr || outputs[o].stride_b == extent.D);
  return runs ? Extent{extent.K, 1, extent.B * extent.D} : extent;
}

template <class T, class Stored, Sum sum, bool folding, int NO, class F, class... In>
void launch(const Extent& extent, const Sums& sums, const Output* outputs, const F& f,
            const In&... in) {
  const int64_t rows = folding ? extent.B : extent.K * extent.B;
  // Measured on an H200: what writes likes longer runs, above all element by element.
  constexpr Cut cut{.summed = sum != Sum::none,
                    .least = !Stored::any ? 4
                             : NO > 0     ? 8
                                          : 2,
                    .busy = NO > 0 ? 6 : 10};
  Operands<sizeof...(In), NO> op{
      extent, tiling(rows, extent.D, Stored::vector(), cut), {in...}, {}, sums, nullptr};
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
void launch_in_precision(const Extent& rows, const Sums& sums, const Output* outputs, const F& f,
                         const In&... in) {
  const Extent extent = in_runs<sum, NO>(rows, outputs, in...);
  with_types<NO>(
      extent, outputs,
      [&]<class T, class Types>() {
        launch<T, Types, sum, folding, NO>(extent, sums, outputs, f, in...);
      },
      in...);
}

// Parameters of one launch.
struct Parameters {
  Chunks chunks;
  Parameter each[kTensors];
};

__device__ __forceinline__ bool begins_a_vector(const void* place) {
  return reinterpret_cast<uintptr_t>(place) % (kVector * sizeof(float)) == 0;
}

// Up to a vector of numbers, at once where it is whole.
__device__ __forceinline__ void read_floats(const float* from, bool whole, int n,
                                            float (&out)[kVector]) {
  if (whole)
    unpack<float>(load_vector<kVector>(from), out);
  else
    read_each(from, n, out);
}

__device__ __forceinline__ void write_floats(float* to, bool whole, int n,
                                             const float (&values)[kVector]) {
  if (whole)
    write_vector(to, values);
  else
    write_each(to, n, values);
}

template <class F>
__global__ void __launch_bounds__(kThreads, 4)
    walk_each(const __grid_constant__ Parameters op, const F f) {
  const int tensor = tensor_of(op.chunks, blockIdx.x);
  const Parameter& of = op.each[tensor];
  const bool vectors = begins_a_vector(of.value) && begins_a_vector(of.exp_avg) &&
                       begins_a_vector(of.exp_avg_sq) && begins_a_vector(of.grad);
  float x[kVectors][4][kVector];
  int64_t at[kVectors];
  int n[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    at[i] = element_of(op.chunks, tensor, blockIdx.x, threadIdx.x, i);
    const int64_t left = of.size - at[i];
    n[i] = left >= kVector ? kVector : left > 0 ? static_cast<int>(left) : 0;
    const bool whole = vectors && n[i] == kVector;
    read_floats(of.value + at[i], whole, n[i], x[i][0]);
    read_floats(of.grad + at[i], whole, n[i], x[i][1]);
    read_floats(of.exp_avg + at[i], whole, n[i], x[i][2]);
    read_floats(of.exp_avg_sq + at[i], whole, n[i], x[i][3]);
  }
  const auto formula = f(of.step ? *of.step : of.step_value);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float y[3][kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const auto r = formula(x[i][0][v], x[i][1][v], x[i][2][v], x[i][3][v]);
#pragma unroll
      for (int o = 0; o < 3; ++o) y[o][v] = r.value[o];
    }
    const bool whole = vectors && n[i] == kVector;
    write_floats(of.value + at[i], whole, n[i], y[0]);
    write_floats(of.exp_avg + at[i], whole, n[i], y[1]);
    write_floats(of.exp_avg_sq + at[i], whole, n[i], y[2]);
  }
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

template <Sum sum = Sum::terms, int NO, class F, class... In>
void seldom_row_sum_and_map(const Extent& extent, const Sums& sums, const Output (&outputs)[NO],
                            const F& f, const In&... in) {
  with_any_types(
      [&]<class T, class Types>() {
        launch<T, Types, sum, false, NO>(extent, sums, outputs, f, in...);
      },
      in...);
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

// In two passes: a thread has a row's elements in the one, a column's in the other.
template <int NO, int NC, class F, class... In>
void row_sum_map_and_column_sum(const Extent& extent, const Sums& sums, const Output (&outputs)[NO],
                                const Sums (&columns)[NC], const F& f, const In&... in) {
  launch_in_precision<Sum::terms, false, 0>(extent, sums, nullptr, f, in...);
  launch_columns_in_precision<NO, NC>(extent, outputs, columns, f, in...);
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

template <class F>
void map_each(const Parameter* parameters, int64_t count, const F& f) {
  static_assert(sizeof(Parameters) + sizeof(F) <= 4096);
  Parameters op;
  for (int64_t i = 0; i < count; ++i) {
    op.each[op.chunks.tensors] = parameters[i];
    add_tensor(op.chunks, parameters[i].size);
    if (op.chunks.tensors < kTensors && i + 1 < count) continue;
    launch_kernel(walk_each<F>, op.chunks.blocks, op, f);
    op.chunks = {};
  }
}

template <int NO, class F, class... C>
void total(const Sums (&outputs)[NO], const F& f, const C&... columns) {
  constexpr int NC = sizeof...(C);
  Totals<NO, NC> op{{}, {columns...}};
  for (int o = 0; o < NO; ++o) op.out[o] = outputs[o];
  int64_t longest = 0;
  for (const Column& column : op.column) longest = column.rows > longest ? column.rows : longest;
  const int64_t parts = parts_of_column(longest);
  const Workspace workspace(parts > 1 ? NC * parts * int64_t{sizeof(double)} : 0);
  if (parts > 1) {
    const ColumnParts<NC> part{
        {columns...}, ceil_div(longest, parts), parts, static_cast<double*>(workspace.data())};
    launch_kernel(sum_parts_of_columns<NC>, parts, part);
    for (int c = 0; c < NC; ++c) op.column[c] = {{Dtype::f64, part.partial + c * parts}, parts};
  }
  launch_kernel(sum_totals<NO, NC, F>, 1, op, f);
}

}  // namespace
}  // namespace fastvae::cuda
