// Elementary functions that a compiler can vectorise: no branch, no table, no call, no errno.
// The float versions are ours on the CPU; double goes to libm and CUDA to the device's own, so
// that a formula is written once over these names.
//
// Coefficients: weighted least squares on Chebyshev nodes, reweighted until the largest error is
// level (Lawson), then rounded to float. Errors are the worst over every float of the range, found
// by tests/test_math.py, which asserts the same numbers on every compiled instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __CUDACC__
#define FASTVAE_FN static __host__ __device__ __forceinline__
#else
// Static and always inlined: a copy compiled for AVX-512 must never be the one that the linker
// keeps for a machine without it.
#define FASTVAE_FN static inline __attribute__((always_inline))
#endif

namespace fastvae::math {

template <class To, class From>
FASTVAE_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

FASTVAE_FN float abs(float x) { return ::fabsf(x); }
FASTVAE_FN double abs(double x) { return ::fabs(x); }

// x, but the largest finite number for infinity: `inf - below_infinity(inf)` is still inf, not NaN.
template <class T>
FASTVAE_FN T below_infinity(T x) {
  const T limit = std::numeric_limits<T>::max();
  return x > limit ? limit : x;
}

#ifdef __CUDA_ARCH__

FASTVAE_FN float exp(float x) { return ::expf(x); }
FASTVAE_FN float log1p_unit(float x) { return ::log1pf(x); }
FASTVAE_FN float sqrt(float x) { return ::sqrtf(x); }

#else

// e^x for every float. Max error 2 ulp; subnormal results within 1 of the last place.
FASTVAE_FN float exp(float x) {
  // Past these limits the result is 0 or inf anyway, and 2^n below stays representable.
  x = x < -105.0f ? -105.0f : x;
  x = x > 89.0f ? 89.0f : x;
  // x = n ln 2 + r, |r| <= ln(2)/2. Adding 1.5 * 2^23 rounds to an integer in the low mantissa
  // bits.
  const float magic = 12582912.0f;
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const int32_t exponent = bit_cast<int32_t>(shifted) - bit_cast<int32_t>(magic);
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 0.0013950487f;
  p = p * r + 0.008368888f;
  p = p * r + 0.041666206f;
  p = p * r + 0.16666518f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors: n reaches 128 and -151, one float exponent does not.
  const int32_t half = exponent >> 1;
  const float scale0 = bit_cast<float>((half + 127) << 23);
  const float scale1 = bit_cast<float>((exponent - half + 127) << 23);
  return p * scale0 * scale1;
}

// log(1 + x) for 0 <= x <= 1. Max error 2 ulp.
FASTVAE_FN float log1p_unit(float x) {
  float p = -0.0033184637f;
  p = p * x + 0.020204544f;
  p = p * x - 0.05766437f;
  p = p * x + 0.10680548f;
  p = p * x - 0.15355392f;
  p = p * x + 0.196954f;
  p = p * x - 0.24958587f;
  p = p * x + 0.33330512f;
  p = p * x - 0.4999993f;
  return p * (x * x) + x;
}

FASTVAE_FN float sqrt(float x) { return std::sqrt(x); }

#endif

FASTVAE_FN double exp(double x) { return ::exp(x); }
FASTVAE_FN double log1p_unit(double x) { return ::log1p(x); }
FASTVAE_FN double sqrt(double x) { return ::sqrt(x); }

// -log((word + 1/2) / 2^32), the exponential variate of a uniform word. Max error 4 ulp; near 1 the
// complement of the word is taken, so that small results keep their relative accuracy.
FASTVAE_FN float exponential(uint32_t word, float) {
  const uint32_t root_half = 0xb504f334u;  // 2^32 / sqrt(2)
  const bool near_one = word >= root_half;
  const float u = static_cast<float>(word) + 0.5f;  // in units of 2^-32
  const int32_t bits = bit_cast<int32_t>(u);
  // u = m 2^e with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
  const int32_t e = (bits - 0x3f3504f3) >> 23;
  const float m = bit_cast<float>(bits - (e << 23));
  const float complement = (static_cast<float>(~word) + 0.5f) * 0x1p-32f;
  const float f = near_one ? -complement : m - 1.0f;
  const float n = near_one ? 0.0f : static_cast<float>(e - 32);
  float p = -0.07634497f;
  p = p * f + 0.12761576f;
  p = p * f - 0.13160183f;
  p = p * f + 0.14201757f;
  p = p * f - 0.16623357f;
  p = p * f + 0.20001227f;
  p = p * f - 0.2500082f;
  p = p * f + 0.3333333f;
  const float f2 = f * f;
  const float log1p = p * (f2 * f) - 0.5f * f2 + f;
  return -(n * 0.693147182f + log1p);
}

FASTVAE_FN double exponential(uint32_t word, double) {
  return word >= 0x80000000u ? -::log1p(-(static_cast<double>(~word) + 0.5) * 0x1p-32)
                             : -::log((static_cast<double>(word) + 0.5) * 0x1p-32);
}

// Sine and cosine of a turn's fraction word / 2^32.
template <class T>
struct SinCos {
  T sin, cos;
};

// Max absolute error 1.2e-7.
FASTVAE_FN SinCos<float> sincos_turn(uint32_t word, float) {
  const uint32_t quadrant = (word + 0x20000000u) >> 30;
  // Rest of the nearest quarter turn, exact in integers: [-1/2, 1/2] quarter turns.
  const float f = static_cast<float>(static_cast<int32_t>(word - (quadrant << 30))) * 0x1p-30f;
  const float f2 = f * f;
  float s = -0.00460531f;
  s = s * f2 + 0.07968158f;
  s = s * f2 - 0.64596367f;
  s = s * (f2 * f) + 1.57079633f * f;
  float c = 0.00090402167f;
  c = c * f2 - 0.020860288f;
  c = c * f2 + 0.25366923f;
  c = c * f2 - 1.2337005f;
  c = c * f2 + 1.0f;
  const bool swap = (quadrant & 1u) != 0;
  const uint32_t sine = bit_cast<uint32_t>(swap ? c : s);
  const uint32_t cosine = bit_cast<uint32_t>(swap ? s : c);
  // sin changes sign in quadrants 2 and 3, cos in 1 and 2.
  return {bit_cast<float>(sine ^ ((quadrant & 2u) << 30)),
          bit_cast<float>(cosine ^ (((quadrant + 1u) & 2u) << 30))};
}

FASTVAE_FN SinCos<double> sincos_turn(uint32_t word, double) {
  const double angle = static_cast<double>(word) * (0x1p-32 * 6.283185307179586);
  return {::sin(angle), ::cos(angle)};
}

}  // namespace fastvae::math
