// Loads and stores of elements on a GPU: in vectors where type and alignment are known at compile
// time, else one by one by their run-time type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../formulas.h"
#include "../kernels.h"
#include "../philox.h"

namespace fastvae::cuda {
namespace {

using Bf16 = __nv_bfloat16;
using F16 = __half;
using Pixel = uint8_t;
struct Bit {  // a byte of a bool tensor
  uint8_t byte;
};
struct Count8 {
  uint8_t count;
};

__device__ __forceinline__ double to_number(double x) { return x; }
__device__ __forceinline__ float to_number(float x) { return x; }
__device__ __forceinline__ float to_number(Bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_number(F16 x) { return __half2float(x); }
__device__ __forceinline__ float to_number(Bit x) { return x.byte != 0 ? 1.0f : 0.0f; }
__device__ __forceinline__ float to_number(Count8 x) { return x.count; }
__device__ __forceinline__ float to_number(int16_t x) { return x; }
__device__ __forceinline__ double to_number(int32_t x) { return x; }
__device__ __forceinline__ double to_number(int64_t x) { return static_cast<double>(x); }

__device__ __forceinline__ void from_number(double x, double& out) { out = x; }
__device__ __forceinline__ void from_number(float x, float& out) { out = x; }
__device__ __forceinline__ void from_number(float x, Bf16& out) { out = __float2bfloat16_rn(x); }
__device__ __forceinline__ void from_number(float x, F16& out) { out = __float2half_rn(x); }
__device__ __forceinline__ void from_number(float x, Bit& out) { out.byte = x != 0; }

template <class S>
constexpr Dtype dtype_of = Dtype::f32;
template <>
constexpr Dtype dtype_of<double> = Dtype::f64;
template <>
constexpr Dtype dtype_of<Bf16> = Dtype::bf16;
template <>
constexpr Dtype dtype_of<F16> = Dtype::f16;
template <>
constexpr Dtype dtype_of<Pixel> = Dtype::u8;
template <>
constexpr Dtype dtype_of<Bit> = Dtype::boolean;
template <>
constexpr Dtype dtype_of<Count8> = Dtype::count8;

// Elements of any type, `n` of up to V at data[offset ..]; the rest are zeros.

template <int V, class S, class T>
__device__ __forceinline__ void read_each(const S* from, int n, T (&out)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = v < n ? static_cast<T>(to_number(from[v])) : T(0);
}

template <int V, class T>
__device__ __forceinline__ void read_any(Dtype dtype, const void* data, int64_t offset, int n,
                                         T (&out)[V]) {
  switch (dtype) {
    case Dtype::f64:
      return read_each(static_cast<const double*>(data) + offset, n, out);
    case Dtype::f32:
      return read_each(static_cast<const float*>(data) + offset, n, out);
    case Dtype::bf16:
      return read_each(static_cast<const Bf16*>(data) + offset, n, out);
    case Dtype::f16:
      return read_each(static_cast<const F16*>(data) + offset, n, out);
    case Dtype::u8: {
      const Pixel* from = static_cast<const Pixel*>(data) + offset;
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = v < n ? formulas::pixel(static_cast<T>(from[v])) : T(0);
      return;
    }
    case Dtype::boolean:
      return read_each(static_cast<const Bit*>(data) + offset, n, out);
    case Dtype::count8:
      return read_each(static_cast<const Count8*>(data) + offset, n, out);
    case Dtype::i16:
      return read_each(static_cast<const int16_t*>(data) + offset, n, out);
    case Dtype::i32:
      return read_each(static_cast<const int32_t*>(data) + offset, n, out);
    case Dtype::i64:
      return read_each(static_cast<const int64_t*>(data) + offset, n, out);
  }
}

template <class S, int V, class T>
__device__ __forceinline__ void write_each(S* to, int n, const T (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (v < n) from_number(values[v], to[v]);
}

template <int V, class T>
__device__ __forceinline__ void write_any(Dtype dtype, void* data, int64_t offset, int n,
                                          const T (&values)[V]) {
  if (dtype == Dtype::f64) {
    double* to = static_cast<double*>(data) + offset;
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (v < n) to[v] = static_cast<double>(values[v]);
    return;
  }
  float narrow[V];
#pragma unroll
  for (int v = 0; v < V; ++v) narrow[v] = static_cast<float>(values[v]);
  switch (dtype) {
    case Dtype::f64:
      return;
    case Dtype::f32:
      return write_each(static_cast<float*>(data) + offset, n, narrow);
    case Dtype::bf16:
      return write_each(static_cast<Bf16*>(data) + offset, n, narrow);
    case Dtype::f16:
      return write_each(static_cast<F16*>(data) + offset, n, narrow);
    default: {  // no kernel writes integers; a mask of 0 and 1 goes to bool
      uint8_t* to = static_cast<uint8_t*>(data) + offset;
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v < n) to[v] = narrow[v] != 0;
    }
  }
}

// V elements in one access of up to 16 bytes.
template <class S, int V>
struct alignas(sizeof(S) * V) Vector {
  static_assert(sizeof(S) * V <= 16);
  S element[V];
};

// Such a vector between memory and its numbers: numbers of less than four bytes in words of four.
template <class S, int V>
using Raw =
    std::conditional_t<std::is_same_v<S, Bf16> || std::is_same_v<S, Pixel>,
                       Vector<uint32_t, (V * static_cast<int>(sizeof(S)) + 3) / 4>, Vector<S, V>>;

// A GPU stops at a vector that does not lie at a multiple of its size; so does the emulation.
template <class Whole>
__device__ __forceinline__ void check_place([[maybe_unused]] const void* place) {
#ifndef __CUDACC__
  if (reinterpret_cast<uintptr_t>(place) % sizeof(Whole) != 0) {
    std::fputs("misaligned vector\n", stderr);
    std::abort();
  }
#endif
}

template <int V, class S>
__device__ __forceinline__ Raw<S, V> load_vector(const S* from) {
  check_place<Raw<S, V>>(from);
  return *reinterpret_cast<const Raw<S, V>*>(from);
}

template <class S, int V>
__device__ __forceinline__ void unpack(const Raw<S, V>& x, float (&out)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if constexpr (std::is_same_v<S, Bf16>) {  // one instruction, where the compiler needs two
      const uint32_t word = x.element[v / 2];
      out[v] = math::bit_cast<float>(v % 2 == 0 ? word << 16 : word & 0xffff0000u);
    } else if constexpr (std::is_same_v<S, Pixel>) {
      // A byte put below the exponent of 2^23 is 2^23 and that byte: the conversion of integers
      // runs at a quarter of the speed. Its scaling takes the 2^23 away, exactly.
      const uint32_t shifted = __byte_perm(x.element[v / 4], 0x4b000000u, 0x7540u + v % 4);
      const float scaled = fmaf(math::bit_cast<float>(shifted), 0x1.0101p-8f, -0x1.0101p15f);
      out[v] = formulas::pixel_of_scaled(scaled);
    } else {
      out[v] = to_number(x.element[v]);
    }
  }
}

template <int V, class S>
__device__ __forceinline__ void write_vector(S* to, const float (&values)[V]) {
  Vector<S, V> x;
#pragma unroll
  for (int v = 0; v < V; ++v) from_number(values[v], x.element[v]);
  check_place<Vector<S, V>>(to);
  *reinterpret_cast<Vector<S, V>*>(to) = x;
}

// Noise. A block of the stream has four numbers.

__device__ __forceinline__ Key key_of(const Input& input) {
  Key key = input.key;
  if (input.seed) key.seed ^= *input.seed;
  if (input.offset) key.offset += *input.offset;
  return key;
}

template <bool normal, class T>
__device__ __forceinline__ void noise_block(Key key, uint64_t block, T (&out)[4]) {
  const PhiloxBlock words = philox(key, block);
  if constexpr (normal) {
    const NormalPair<T> x = box_muller<T>(words.word[0], words.word[1]);
    const NormalPair<T> y = box_muller<T>(words.word[2], words.word[3]);
    out[0] = x.first;
    out[1] = x.second;
    out[2] = y.first;
    out[3] = y.second;
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) out[w] = uniform<T>(words.word[w]);
  }
}

// Numbers first .. first + V - 1 of the stream; `aligned`: first is the first of a block.
template <bool normal, bool aligned, int V, class T>
__device__ __forceinline__ void noise(Key key, uint64_t first, T (&out)[V]) {
  static_assert(V % 4 == 0);
  const uint64_t block = first / 4;
  T made[V + 4];
#pragma unroll
  for (int j = 0; j < V / 4 + (aligned ? 0 : 1); ++j) {
    T four[4];
    noise_block<normal>(key, block + j, four);
#pragma unroll
    for (int w = 0; w < 4; ++w) made[4 * j + w] = four[w];
  }
  const int skip = aligned ? 0 : static_cast<int>(first % 4);
  // Registers have no addresses: each of the four shifts is a select.
#pragma unroll
  for (int v = 0; v < V; ++v) {
    out[v] = made[v];
    if constexpr (!aligned) {
#pragma unroll
      for (int s = 1; s < 4; ++s) out[v] = skip == s ? made[v + s] : out[v];
    }
  }
}

}  // namespace
}  // namespace fastvae::cuda
