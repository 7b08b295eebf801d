// Elementary functions that a compiler can vectorise: no branch, no table, no call, no errno.
// On the CPU the float versions are our own; double calls libm, and CUDA calls the device's
// functions, so that a formula is written once with these names.
//
// Coefficients: weighted least squares on Chebyshev nodes, reweighted until the largest error is
// level (Lawson), then rounded to float. Errors are the worst over every float of the range,
// rounded up; docs/accuracy.md has them for each compiled instruction set, and the tests assert
// them there.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __CUDACC__
#define FASTVAE_MEMBER __host__ __device__ __forceinline__
#define FASTVAE_FN static FASTVAE_MEMBER
#else
// Static and always inlined: a copy compiled for AVX-512 must never be the one that the linker
// keeps for a machine without it.
#define FASTVAE_MEMBER inline __attribute__((always_inline))
#define FASTVAE_FN static FASTVAE_MEMBER
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

template <class T>
FASTVAE_FN bool is_infinite(T x) {
  return x > std::numeric_limits<T>::max();
}

// x = n ln 2 + r, |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds to an integer in the low mantissa
// bits; `bias` is added to it there. `bits` << 23 is then an exponent: a shift alone makes the
// scale.
struct Reduced {
  float r, n;
  uint32_t bits;
};

FASTVAE_FN Reduced reduce(float x, float bias) {
  const float magic = 12582912.0f + bias;
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  return {(x - n * 0.693145752f) - n * 1.42860677e-6f, n, bit_cast<uint32_t>(shifted)};
}

#ifdef __CUDA_ARCH__

FASTVAE_FN float exp(float x) { return ::expf(x); }
// e^-x for x >= 0, but 0 where that is below 2^-126. Max error 3 ulp: 2^t has 2, and t, which is
// rounded, is less than -x / ln 2 by what is made good after it.
FASTVAE_FN float exp_minus(float x) {
  float bounded, power;
  asm("min.NaN.f32 %0, %1, 0f43000000;" : "=f"(bounded) : "f"(x));  // 128: infinity less infinity
  const float t = bounded * -1.44269504f;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(t));
  const float rest = fmaf(t, 1.90465421e-9f, fmaf(t, -0.693147182f, -bounded));
  return fmaf(power, rest, power);
}
FASTVAE_FN float sqrt(float x) { return ::sqrtf(x); }
FASTVAE_FN float divide(float a, float b) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
  return a * reciprocal;
}

#else

// e^r for |r| <= ln(2) / 2.
FASTVAE_FN float exp_reduced(float r) {
  float p = 0.008290306f;
  p = p * r + 0.041897975f;
  p = p * r + 0.16667637f;
  p = p * r + 0.49999148f;
  p = p * r + 0.9999997f;
  return p * r + 1.0f;
}

// e^x for every float, but 0 where that is below 2^-125. Max error 2.5 ulp.
FASTVAE_FN float exp(float x) {
  // 2^(n-1), because 2^128 is no float while results reach it but for a little.
  const Reduced t = reduce(x, 126.0f);
  const float p = exp_reduced(t.r);
  float y = (p + p) * bit_cast<float>(t.bits << 23);
  y = x < -86.6433976f ? 0.0f : y;  // -125 ln 2
  return x > 88.7228394f ? std::numeric_limits<float>::infinity() : y;
}

// e^-x for x >= 0, but 0 where that is below 2^-126. Max error 2.5 ulp.
FASTVAE_FN float exp_minus(float x) {
  const Reduced t = reduce(-x, 127.0f);
  const float y = exp_reduced(t.r) * bit_cast<float>(t.bits << 23);
  return x > 87.3365402f ? 0.0f : y;  // 126 ln 2
}

FASTVAE_FN float sqrt(float x) { return std::sqrt(x); }
FASTVAE_FN float divide(float a, float b) { return a / b; }

#endif

FASTVAE_FN double exp(double x) { return ::exp(x); }
FASTVAE_FN double exp_minus(double x) { return ::exp(-x); }
FASTVAE_FN double sqrt(double x) { return ::sqrt(x); }
// a / b for b from 2^-126 to 2^126: within 3.3 ulp in float on a GPU, if its reciprocal is within
// one of the rounded one; the exact quotient takes eight instructions more.
FASTVAE_FN double divide(double a, double b) { return a / b; }

// e^x with what is left of it near 0, each by itself accurate: e^x - 1 and e^x - 1 - x, which is
// never negative.
template <class T>
struct Exponential {
  T value, less_one, less_line;
};

// (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2.
FASTVAE_FN float exp_curvature(float r) {
  float p = 0.000198578156f;
  p = p * r + 0.00139336428f;
  p = p * r + 0.00833336078f;
  p = p * r + 0.0416664667f;
  p = p * r + 0.166666672f;
  return p * r + 0.5f;
}

// Max errors: of the value 1.1 ulp, of e^x - 1 1.6 ulp, of e^x - 1 - x 2.3 ulp; the value is 0
// below 2^-125.
FASTVAE_FN Exponential<float> exponential_of(float x) {
  // In halves, because 2^128 is no float while results reach it but for a little.
  const Reduced t = reduce(x, 126.0f);
  const float half = bit_cast<float>(t.bits << 23), step = half - 0.5f;  // 2^(n-1)
  const float curve = exp_curvature(t.r) * (t.r * t.r);
  const float rise = t.r + curve;  // e^r - 1
  // e^x - 1 is 2^n rise + (2^n - 1), and e^x - 1 - x that less n ln 2 + r. No term cancels another
  // by more than a few bits.
  const float value = half + half * rise;
  const float less_one = half * rise + step;
  const float less_line =
      half * curve +
      (step * t.r + ((step - t.n * (0.5f * 0.693145752f)) - t.n * (0.5f * 1.42860677e-6f)));
  const bool vanishes = x < -86.6433976f, overflows = x > 88.7228394f;  // -125 ln 2, 128 ln 2
  const float infinity = std::numeric_limits<float>::infinity();
  return {overflows  ? infinity
          : vanishes ? 0.0f
                     : value + value,
          overflows  ? infinity
          : vanishes ? -1.0f
                     : less_one + less_one,
          overflows  ? infinity
          : vanishes ? -1.0f - x
                     : less_line + less_line};
}

FASTVAE_FN Exponential<double> exponential_of(double x) {
  // The series, where e^x - 1 is near x; its next term is below 2^-60 of it.
  const double y = abs(x) < 1.0 ? x : 0.0;
  double p = 0;
  for (int k = 20; k >= 3; --k) p = (p + 1.0) * (y * (1.0 / k));
  const double less_one = ::expm1(x);
  return {::exp(x), less_one,
          abs(x) < 1.0 ? (p + 1.0) * (0.5 * x * x) : less_one - below_infinity(x)};
}

// log(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)].
FASTVAE_FN float log1p_reduced(float f) {
  float p = -0.07634497f;
  p = p * f + 0.12761576f;
  p = p * f - 0.13160183f;
  p = p * f + 0.14201757f;
  p = p * f - 0.16623357f;
  p = p * f + 0.20001227f;
  p = p * f - 0.2500082f;
  p = p * f + 0.3333333f;
  const float f2 = f * f;
  return p * (f2 * f) - 0.5f * f2 + f;
}

// log(1 + x) for 0 <= x <= 2^64. Max error 1.6 ulp.
FASTVAE_FN float log1p(float x) {
  // 1 + x = 2^e (1 + f); 0x3f3504f3 is sqrt(1/2). The rounding of 1 + x moves e at most, not f.
  const int32_t e = (bit_cast<int32_t>(1.0f + x) - 0x3f3504f3) >> 23;
  const float scale = bit_cast<float>((127 - e) << 23);
  return static_cast<float>(e) * 0.693147182f + log1p_reduced(x * scale + (scale - 1.0f));
}

FASTVAE_FN double log1p(double x) { return ::log1p(x); }

// -log((word + 1/2) / 2^32), the exponential variate of a uniform word. Max error 2.5 ulp; near 1
// the complement of the word is taken, so that small results keep their relative accuracy.
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
  return -(n * 0.693147182f + log1p_reduced(f));
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

// Max absolute error 1.1e-7.
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
#ifdef __CUDA_ARCH__
  SinCos<double> result;
  ::sincospi(static_cast<double>(word) * 0x1p-31, &result.sin, &result.cos);
  return result;
#else
  const double angle = static_cast<double>(word) * (0x1p-32 * 6.283185307179586);
  return {::sin(angle), ::cos(angle)};
#endif
}

}  // namespace fastvae::math
