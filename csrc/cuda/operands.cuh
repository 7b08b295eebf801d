// One operand of a loop, whose elements are read from memory, shared or generated, and the types
// of these elements.
#pragma once

#include <type_traits>

#include "../kernels.h"
#include "access.cuh"

// Of the C library, and of the GPU, which declare it where NDEBUG is not defined.
extern "C" __host__ __device__ void __assert_fail(const char* assertion, const char* file,
                                                  unsigned line, const char* function) noexcept;

namespace fastvae::cuda {
namespace {

// How elements are stored: S, and X those of targets and images; void: any types, known at run
// time.
template <class S, class X>
struct Stored {
  static constexpr bool any = std::is_void_v<S>;
  static constexpr bool is_short = std::is_same_v<S, Bf16> || std::is_same_v<S, F16>;
  template <class In>
  using Type = std::conditional_t<std::is_same_v<In, Target> || std::is_same_v<In, Counts> ||
                                      std::is_same_v<In, Gathered>,
                                  X, S>;
  static constexpr int vector() {
    if constexpr (any) {
      return 4;
    } else {
      constexpr int most = 16 / static_cast<int>(sizeof(S) > sizeof(X) ? sizeof(S) : sizeof(X));
      return most < 8 ? most : 8;  // bytes alone are images that are drawn: registers are scarce
    }
  }
};

template <class In>
constexpr bool is_noise = std::is_same_v<In, Normal> || std::is_same_v<In, Uniform>;

// Whether a function says that it needs many registers.
template <class F>
constexpr bool is_long = [] {
  if constexpr (requires { F::is_long; }) return F::is_long;
  return false;
}();

// Blocks that a processor must hold at once, which leaves a thread 64, 80, 128 or 255 registers.
// Not said, the compiler would spill a few for the sake of more blocks.
template <class T, class Stored, class F, class... In>
constexpr int resident_blocks = [] {
  if constexpr ((is_noise<In> || ...)) return Stored::any ? 1 : Stored::is_short ? 2 : 3;
  if constexpr (sizeof...(In) > 3 || is_long<F>) return Stored::any ? 1 : 2;
  return Stored::any ? 2 : 4;
}();

// a / b of numbers that are not negative: a division of 64 bits takes five times as long.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) != 0) return a / b;
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

// A row by its sample and its row of the data: one division for all operands.
struct Row {
  int64_t k, b;
};

__device__ __forceinline__ Row row_of(const Extent& extent, int64_t row) {
  if (extent.K == 1) return {0, row};
  const int64_t k = quotient(row, extent.B);
  return {k, row - k * extent.B};
}

template <class Operand>
__device__ __forceinline__ int64_t offset_of(const Operand& operand, const Row& row) {
  return row.k * operand.stride_k + row.b * operand.stride_b;
}

// Where a row begins that is gathered by its number. Nobody waits to see whether there is such a
// row: the kernel stops, as torch's own do.
__device__ __forceinline__ int64_t gathered_offset(const Input& input, int64_t row) {
  const int64_t at = input.index[row];
  if (at < 0 || at >= input.rows)
    __assert_fail("an index lies among the images", "fastvae", __LINE__, "binarize");
  return at * input.stride_b;
}

// Which of the values that elements share is that of one column.
__device__ __forceinline__ int64_t shared_place(const Input& input, int64_t column) {
  const int64_t place = input.inner == 1 ? column : quotient(column, input.inner);
  return place < input.count ? place : place - quotient(place, input.count) * input.count;
}

// One input of one row: elements (or a constant), what they share, a number for the row, or noise.
template <class T, class Stored, class In>
struct Source {
  const Input& input;
  int64_t first;  // of the row: where its elements begin, or the number of its first noise
  T fixed;        // where it is the same for the whole row
  Key key;

  __device__ __forceinline__ Source(const Extent& extent, const Input& input, const Row& row)
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
                                                     const Row& row) {
    if constexpr (is_noise<In>) return (row.k * extent.B + row.b) * extent.D;
    if constexpr (std::is_same_v<In, Gathered>)
      if (input.kind == Input::Kind::gathered) return gathered_offset(input, row.b);
    return offset_of(input, row);
  }

  template <int V>
  __device__ __forceinline__ void fill(T (&out)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = fixed;
  }

  // What can be fetched from memory before it is needed.
  static constexpr bool fetches =
      !Stored::any && !is_noise<In> && !std::is_same_v<In, PerRow> && !std::is_same_v<In, Shared>;
  struct Nothing {};
  using S = std::conditional_t<Stored::any, float, typename Stored::template Type<In>>;
  using Fetched = std::conditional_t<fetches, Raw<S, Stored::vector()>, Nothing>;

  __device__ __forceinline__ Fetched fetch(int64_t column) const {
    if constexpr (fetches)
      return load_vector<Stored::vector()>(static_cast<const S*>(input.data) + first + column);
    else
      return {};
  }

  // Columns column .. column + V - 1, of which n exist.
  template <int V>
  __device__ __forceinline__ void read(int64_t column, int n, T (&out)[V]) const {
    read(column, n, fetch(column), out);
  }

  template <int V>
  __device__ __forceinline__ void read(int64_t column, int n, const Fetched& fetched,
                                       T (&out)[V]) const {
    if constexpr (fetches) {
      unpack<S>(fetched, out);
    } else if constexpr (is_noise<In>) {
      noise<std::is_same_v<In, Normal>, !Stored::any>(key, first + column, out);
    } else if constexpr (std::is_same_v<In, PerRow>) {
      fill(out);
    } else if constexpr (Stored::any) {
      if (input.kind == Input::Kind::constant)
        fill(out);
      else if (std::is_same_v<In, Shared> && input.kind == Input::Kind::shared)
        read_shared(column, n, out);
      else if (std::is_same_v<In, Counts> && input.kind == Input::Kind::sparse)
        read_sparse(column, n, out);
      else
        read_any(input.dtype, input.data, first + column, n, out);
    } else {  // Shared, by whole vectors: fits() has seen to it
      const S* from = static_cast<const S*>(input.data) + first;
      const bool repeats = input.kind == Input::Kind::shared;
      if (repeats && input.inner > 1) {
        const T value = to_number(from[shared_place(input, column)]);
#pragma unroll
        for (int v = 0; v < V; ++v) out[v] = value;
      } else {
        const int64_t place = repeats ? shared_place(input, column) : column;
        unpack<S>(load_vector<V>(from + place), out);
      }
    }
  }

  // Of columns that are not sorted, which nobody promised, some are left out.
  template <int V>
  __device__ __forceinline__ void read_sparse(int64_t column, int n, T (&out)[V]) const {
    int64_t at = input.index[first], end = input.index[first + 1];
    at = at < 0 ? 0 : at;
    end = end < input.rows ? end : input.rows;
    for (int64_t last = end; at < last;) {
      const int64_t middle = at + (last - at) / 2;
      if (input.columns[middle] < column)
        at = middle + 1;
      else
        last = middle;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      out[v] = T(0);
      if (v >= n || at >= end || input.columns[at] != column + v) continue;
      T one[1];
      read_any(input.dtype, input.data, at++, 1, one);
      out[v] = one[0];
    }
  }

  template <int V>
  __device__ __forceinline__ void read_shared(int64_t column, int n, T (&out)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      T one[1];
      read_any(input.dtype, input.data, first + shared_place(input, column + (v < n ? v : 0)), 1,
               one);
      out[v] = one[0];
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

// Whether all vectors of an operand's rows can be read at once.
template <class Operand>
bool is_aligned(const Extent& extent, const Operand& operand, int vector, int size) {
  return reinterpret_cast<uintptr_t>(operand.data) % (vector * size) == 0 &&
         (extent.B == 1 || operand.stride_b % vector == 0) &&
         (extent.K == 1 || operand.stride_k % vector == 0);
}

template <class Stored, class In>
bool fits(const Extent& extent, const In& input) {
  if (is_noise<In>) return true;
  // One in double asks for the arithmetic of the general path.
  if (std::is_same_v<In, PerRow>)
    return input.kind == Input::Kind::constant || input.dtype != Dtype::f64;
  using S = typename Stored::template Type<In>;
  if (std::is_same_v<In, Shared> && input.kind == Input::Kind::shared)
    return input.dtype == dtype_of<S> &&
           (input.inner % Stored::vector() == 0 ||
            (input.inner == 1 && input.count % Stored::vector() == 0 &&
             is_aligned(extent, input, Stored::vector(), sizeof(S))));
  // A batch of one may be any row of several.
  const bool gathered = std::is_same_v<In, Gathered> && input.kind == Input::Kind::gathered &&
                        input.stride_b % Stored::vector() == 0;
  return (input.kind == Input::Kind::elements || gathered) && input.dtype == dtype_of<S> &&
         is_aligned(extent, input, Stored::vector(), sizeof(S));
}

template <class Stored>
bool fits(const Extent& extent, const Output& output) {
  using S = typename Stored::template Type<Input>;
  return output.data == nullptr ||
         (output.dtype == dtype_of<S> && is_aligned(extent, output, Stored::vector(), sizeof(S)));
}

// Calls launch.operator()<T, Stored>() for elements whose types are known at run time.
template <class Launch, class... In>
void with_any_types(const Launch& launch, const In&... in) {
  using Any = Stored<void, void>;
  if (((in.dtype == Dtype::f64) || ...))
    launch.template operator()<double, Any>();
  else
    launch.template operator()<float, Any>();
}

// The same with the types that the elements have: first those known
// when compiled, where all operands fit them.
template <int NO, class Launch, class... In>
void with_types(const Extent& extent, const Output* outputs, const Launch& launch,
                const In&... in) {
  const auto as = [&]<class S, class X>() {
    using Types = Stored<S, X>;
    bool all = extent.D % Types::vector() == 0 && (fits<Types>(extent, in) && ...);
    for (int o = 0; o < NO; ++o) all = all && fits<Types>(extent, outputs[o]);
    if (all) launch.template operator()<float, Types>();
    return all;
  };
  constexpr bool has_target = (std::is_same_v<In, Target> || ...);
  if constexpr ((std::is_same_v<In, Uniform> || ...)) {  // images are drawn from bytes, to be
    if (as.template operator()<Bit, Pixel>() || as.template operator()<float, Pixel>() ||
        as.template operator()<Bf16, Pixel>())
      return;
  } else {
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
    if constexpr ((std::is_same_v<In, Counts> || ...)) {
      if (as.template operator()<float, Count8>() || as.template operator()<Bf16, float>() ||
          as.template operator()<Bf16, Count8>() || as.template operator()<F16, float>() ||
          as.template operator()<F16, Count8>())
        return;
    }
  }
  with_any_types(launch, in...);
}

}  // namespace
}  // namespace fastvae::cuda
