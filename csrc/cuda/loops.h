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
#include "access.cuh"
#include "runtime.h"
#include "sums.cuh"

// What kernels/*.cpp mark the functions with that a loop runs.
#define FASTVAE_LAMBDA __device__

// Of the C library, and of the GPU, which declare it where NDEBUG is not defined.
extern "C" __host__ __device__ void __assert_fail(const char* assertion, const char* file,
                                                  unsigned line, const char* function) noexcept;

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

// How elements are stored: S, and X those of targets; void: any types, known at run time.
template <class S, class X>
struct Stored {
  static constexpr bool any = std::is_void_v<S>;
  template <class In>
  using Type = std::conditional_t<std::is_same_v<In, Target>, X, S>;
  static constexpr int vector() {
    if constexpr (any) {
      return 4;
    } else {
      return 16 / static_cast<int>(sizeof(S) > sizeof(X) ? sizeof(S) : sizeof(X));
    }
  }
};

template <class In>
constexpr bool is_noise = std::is_same_v<In, Normal> || std::is_same_v<In, Uniform>;

// Blocks that a processor must hold at once, which leaves a thread 64, 128 or 255 registers. Not
// said, the compiler would spill a few for the sake of more blocks.
template <class T, class Stored, class... In>
constexpr int resident_blocks = (Stored::any ? 2 : 4) / ((is_noise<In> || ...) ? 2 : 1);

// Where a row begins that is gathered by its number. Nobody waits to see whether there is such a
// row: the kernel stops, as torch's own do.
__device__ __forceinline__ int64_t gathered_offset(const Input& input, int64_t row) {
  const int64_t at = input.index[row];
  if (at < 0 || at >= input.rows)
    __assert_fail("an index lies among the images", "fastvae", __LINE__, "binarize");
  return at * input.stride_b;
}

// One input of one row: elements (or a constant), a number for the row, or noise.
template <class T, class Stored, class In>
struct Source {
  const Input& input;
  int64_t first;  // of the row: where its elements begin, or the number of its first noise
  T fixed;        // where it is the same for the whole row
  Key key;

  __device__ __forceinline__ Source(const Extent& extent, const Input& input, int64_t row)
      : input(input), first(first_of(extent, input, row)), fixed(static_cast<T>(input.value)) {
    if constexpr (is_noise<In>) {
      key = key_of(input);
    } else if constexpr (std::is_same_v<In, PerRow>) {
      if (input.kind == Input::Kind::constant) return;
      T one[1];
      read_any(input.dtype, input.data, first, 1, one);
      fixed *= one[0];
    }
  }

  __device__ __forceinline__ static int64_t first_of(const Extent& extent, const Input& input,
                                                     int64_t row) {
    if constexpr (is_noise<In>) {
      return row * extent.D;
    } else if constexpr (std::is_same_v<In, Gathered>) {
      return input.kind == Input::Kind::gathered ? gathered_offset(input, row)
                                                 : row_offset(extent, input, row);
    } else {
      return row_offset(extent, input, row);
    }
  }

  template <int V>
  __device__ __forceinline__ void fill(T (&out)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = fixed;
  }

  // Columns column .. column + V - 1, of which n exist.
  template <int V>
  __device__ __forceinline__ void read(int64_t column, int n, T (&out)[V]) const {
    if constexpr (is_noise<In>) {
      noise<std::is_same_v<In, Normal>, !Stored::any>(key, first + column, out);
    } else if constexpr (std::is_same_v<In, PerRow>) {
      fill(out);
    } else if constexpr (Stored::any) {
      if (input.kind == Input::Kind::constant)
        fill(out);
      else
        read_any(input.dtype, input.data, first + column, n, out);
    } else {
      using S = typename Stored::template Type<In>;
      read_vector(static_cast<const S*>(input.data) + first + column, out);
    }
  }
};

template <class T, class Stored, int V>
__device__ __forceinline__ void write(const Output& output, int64_t offset, int n,
                                      const T (&values)[V]) {
  if (output.data == nullptr) return;
  if constexpr (Stored::any) {
    write_any(output.dtype, output.data, offset, n, values);
  } else {
    using S = typename Stored::template Type<Input>;
    write_vector(static_cast<S*>(output.data) + offset, values);
  }
}

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

// Whether all vectors of an operand's rows can be read at once.
template <class Operand>
bool is_aligned(const Extent& extent, const Operand& operand, int vector, int size) {
  return reinterpret_cast<uintptr_t>(operand.data) % (vector * size) == 0 &&
         operand.stride_b % vector == 0 && (extent.K == 1 || operand.stride_k % vector == 0);
}

template <class Stored, class In>
bool fits(const Extent& extent, const In& input) {
  if (is_noise<In> || std::is_same_v<In, PerRow>) return true;
  using S = typename Stored::template Type<In>;
  return input.kind == Input::Kind::elements && input.dtype == dtype_of<S> &&
         is_aligned(extent, input, Stored::vector(), sizeof(S));
}

template <class Stored>
bool fits(const Extent& extent, const Output& output) {
  using S = typename Stored::template Type<Input>;
  return output.data == nullptr ||
         (output.dtype == dtype_of<S> && is_aligned(extent, output, Stored::vector(), sizeof(S)));
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
      extent,  tile(folding ? extent.B : extent.K * extent.B, extent.D, Stored::vector()),
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

template <Sum sum, bool folding, int NO, class S, class X, class F, class... In>
bool launch_if_fits(const Extent& extent, const Sums& sums, const Output* outputs, const F& f,
                    const In&... in) {
  using Types = Stored<S, X>;
  bool all = extent.D % Types::vector() == 0 && (fits<Types>(extent, in) && ...);
  for (int o = 0; o < NO; ++o) all = all && fits<Types>(extent, outputs[o]);
  if (all) launch<float, Types, sum, folding, NO>(extent, sums, outputs, f, in...);
  return all;
}

// With the types that the elements have: first those known when compiled.
template <Sum sum, bool folding, int NO, class F, class... In>
void launch_in_precision(const Extent& extent, const Sums& sums, const Output* outputs, const F& f,
                         const In&... in) {
  const auto as = [&]<class S, class X>() {
    return launch_if_fits<sum, folding, NO, S, X>(extent, sums, outputs, f, in...);
  };
  constexpr bool has_target = (std::is_same_v<In, Target> || ...);
  // What is drawn from uniform numbers are images for a batch: not worth types of its own.
  constexpr bool is_drawn = (std::is_same_v<In, Uniform> || ...);
  if constexpr (!is_drawn) {
    if (as.template operator()<float, float>() || as.template operator()<Bf16, Bf16>() ||
        as.template operator()<F16, F16>())
      return;
    if constexpr (has_target) {
      if (as.template operator()<float, Pixel>() || as.template operator()<float, Bit>() ||
          as.template operator()<Bf16, float>() || as.template operator()<Bf16, Pixel>() ||
          as.template operator()<Bf16, Bit>() || as.template operator()<F16, float>() ||
          as.template operator()<F16, Pixel>() || as.template operator()<F16, Bit>())
        return;
    }
  }
  using Any = Stored<void, void>;
  if (((in.dtype == Dtype::f64) || ...))
    launch<double, Any, sum, folding, NO>(extent, sums, outputs, f, in...);
  else
    launch<float, Any, sum, folding, NO>(extent, sums, outputs, f, in...);
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

template <int NO, class F, class... C>
void total(const Sums (&outputs)[NO], const F& f, const C&... columns) {
  Totals<NO, sizeof...(C)> op{{}, {columns...}};
  for (int o = 0; o < NO; ++o) op.out[o] = outputs[o];
  launch_kernel(sum_columns<NO, sizeof...(C), F>, 1, op, f);
}

}  // namespace
}  // namespace fastvae::cuda
