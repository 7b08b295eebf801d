// Conversion of runs of elements between their type in memory and the type that a loop computes
// in. It uses bit arithmetic instead of intrinsics, so that one source vectorises on every
// instruction set.
#pragma once

#include "../formulas.h"
#include "../kernels.h"

namespace fastvae::cpu {
namespace {

template <class T>
constexpr Dtype dtype_of = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;

FASTVAE_FN float bf16_to_float(uint16_t x) {
  return math::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
FASTVAE_FN uint16_t float_to_bf16(float x) {
  const uint32_t bits = math::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40u : rounded);
}

FASTVAE_FN float f16_to_float(uint16_t x) {
  const uint32_t magnitude = static_cast<uint32_t>(x & 0x7fffu) << 13;
  // Moves the exponent's bias from 15 to 127.
  const uint32_t normal = magnitude + (112u << 23);
  // 2^-14 + m is exact, and so is m: no float below 2^-126 is made, which a processor may be told
  // to take for 0.
  const float subnormal = math::bit_cast<float>(magnitude + (113u << 23)) - 0x1p-14f;
  uint32_t bits = magnitude < 0x00800000u ? math::bit_cast<uint32_t>(subnormal) : normal;
  bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits;
  return math::bit_cast<float>(bits | (static_cast<uint32_t>(x & 0x8000u) << 16));
}

// Round to nearest, ties to even; too large is infinity; NaN stays a NaN.
FASTVAE_FN uint16_t float_to_f16(float x) {
  const uint32_t bits = math::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 puts a subnormal's bits at the end of the mantissa, rounded.
  const uint32_t subnormal =
      math::bit_cast<uint32_t>(math::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and more
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

// Formulas of a hundred instructions a vector keep a processor from seeing the loads that come
// after the next few, so that it would take memory and arithmetic in turn.
constexpr int64_t kStretch = 128;  // elements from one prefetch to the next
constexpr int64_t kAhead = 2048;   // bytes

template <class T>
FASTVAE_FN void prefetch(const T* stretch) {
  // As a number: it may lie past the end, where a prefetch does nothing.
  const auto at = reinterpret_cast<uintptr_t>(stretch) + kAhead;
  for (uintptr_t byte = 0; byte < kStretch * sizeof(T); byte += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(at + byte));
}

template <class From, class T, class F>
void convert_run(const void* data, int64_t offset, int64_t n, T* out, bool ahead, F convert) {
  const From* from = static_cast<const From*>(data) + offset;
  int64_t i = 0;
  for (; i + kStretch <= n; i += kStretch) {
    if (ahead) prefetch(from + i);
#pragma omp simd
    for (int64_t j = i; j < i + kStretch; ++j) out[j] = static_cast<T>(convert(from[j]));
  }
#pragma omp simd
  for (int64_t j = i; j < n; ++j) out[j] = static_cast<T>(convert(from[j]));
}

// out[0 .. n-1] = data[offset .. offset + n - 1]; `ahead` if what comes after them is read next.
template <class T>
void read(Dtype dtype, const void* data, int64_t offset, int64_t n, T* out, bool ahead = false) {
  switch (dtype) {
    case Dtype::f64:
      return convert_run<double>(data, offset, n, out, ahead, [](double x) { return x; });
    case Dtype::f32:
      return convert_run<float>(data, offset, n, out, ahead, [](float x) { return x; });
    case Dtype::bf16:
      return convert_run<uint16_t>(data, offset, n, out, ahead, bf16_to_float);
    case Dtype::f16:
      return convert_run<uint16_t>(data, offset, n, out, ahead, f16_to_float);
    case Dtype::u8:
      return convert_run<uint8_t>(data, offset, n, out, ahead,
                                  [](uint8_t x) { return formulas::pixel(static_cast<T>(x)); });
    case Dtype::boolean:
      return convert_run<uint8_t>(data, offset, n, out, ahead,
                                  [](uint8_t x) { return x != 0 ? T(1) : T(0); });
    case Dtype::count8:
      return convert_run<uint8_t>(data, offset, n, out, ahead, [](uint8_t x) { return x; });
    case Dtype::i16:
      return convert_run<int16_t>(data, offset, n, out, ahead, [](int16_t x) { return x; });
    case Dtype::i32:
      return convert_run<int32_t>(data, offset, n, out, ahead, [](int32_t x) { return x; });
    case Dtype::i64:
      return convert_run<int64_t>(data, offset, n, out, ahead, [](int64_t x) { return x; });
  }
}

template <class To, class T, class F>
void write_run(void* data, int64_t offset, int64_t n, const T* from, F convert) {
  To* to = static_cast<To*>(data) + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(convert(from[i]));
}

// data[offset .. offset + n - 1] = from[0 .. n-1]
template <class T>
void write(Dtype dtype, void* data, int64_t offset, int64_t n, const T* from) {
  switch (dtype) {
    case Dtype::f64:
      return write_run<double>(data, offset, n, from, [](T x) { return x; });
    case Dtype::f32:
      return write_run<float>(data, offset, n, from, [](T x) { return x; });
    case Dtype::bf16:
      return write_run<uint16_t>(data, offset, n, from,
                                 [](T x) { return float_to_bf16(static_cast<float>(x)); });
    case Dtype::f16:
      return write_run<uint16_t>(data, offset, n, from,
                                 [](T x) { return float_to_f16(static_cast<float>(x)); });
    default:  // no kernel writes integers; a mask of 0 and 1 goes to bool
      return write_run<uint8_t>(data, offset, n, from, [](T x) { return x; });
  }
}

}  // namespace
}  // namespace fastvae::cpu
