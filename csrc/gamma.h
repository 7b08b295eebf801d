// What the likelihoods of counts need of the gamma function, and those likelihoods. As in
// simd_math.h, the float versions have no branch, no table and no call. The double versions may
// branch, loop and call libm.
//
// All are based on Binet's function S(y) = log Gamma(y) - (y - 1/2) log y + y - log(2 pi) / 2,
// which is small and smooth for y >= 1. An argument below 1 is shifted up by 1, once. Terms that
// cancel where theta is large are cancelled in the formula, not in rounded numbers.
//
// Coefficients are Lawson's as in simd_math.h. u is 2^-24.
#pragma once

#include "formulas.h"
#include "simd_math.h"

namespace fastvae::math {

// Coefficients from the constant term on. A polynomial of many is taken as one of its even and one
// of its odd powers: half the latency, which is what bounds these loops.
template <class T>
FASTVAE_FN T horner(T, T c) {
  return c;
}

template <class T, class... More>
FASTVAE_FN T horner(T x, T c, More... more) {
  return horner(x, more...) * x + c;
}

// Below, y is 1 / w and v is w^2.

// S(y) / w for y >= 1, error of S 1.1e-8, with its divided difference by v between two places.
template <class T>
struct Divided {
  T value, difference;  // at the first place; (value - value at the other) / (v - v of the other)
};

template <class T>
FASTVAE_FN Divided<T> divided(T, T, T c) {
  return {c, T(0)};
}

template <class T, class... More>
FASTVAE_FN Divided<T> divided(T v, T other, T c, More... more) {
  const Divided<T> d = divided(v, other, more...);
  return {d.value * v + c, d.difference * other + d.value};
}

FASTVAE_FN Divided<float> binet_ratio(float v, float other) {
  return divided(v, other, 0.0833332166f, -0.00277373684f, 0.000752445194f, -0.000390733912f,
                 0.00018382736f, -4.3557633e-05f);
}

FASTVAE_FN float binet(float w) {
  return w * horner(w * w, 0.0833332166f, -0.00277373684f, 0.000752445194f, -0.000390733912f,
                    0.00018382736f, -4.3557633e-05f);
}

// -S'(y) / v = (log y - 1 / (2 y) - digamma(y)) / v for y >= 1, error of S' 2.9e-8.
FASTVAE_FN Divided<float> binet_fall_ratio(float v, float other) {
  return divided(v, other, 0.0833312273f, -0.00828308985f, 0.00353957666f, -0.0021913026f,
                 0.00106932223f, -0.000250097422f);
}

// -S'(y), error 7.7e-9.
FASTVAE_FN float binet_fall(float w) {
  const float v = w * w;
  return v * horner(v, 0.0833326802f, -0.00831299555f, 0.00374133373f, -0.00281100348f,
                    0.00202526618f, -0.000972060894f, 0.000212450352f);
}

// S''(y) = trigamma(y) - 1 / y - 1 / (2 y^2) for y >= 1, absolute error 5e-7.
FASTVAE_FN float binet_curvature(float w) {
  const float v = w * w;
  return v * w *
         horner(v, 0.16657941f, -0.0320561938f, 0.0164586566f, -0.00801892951f, 0.0019716227f);
}

// The same by Stirling's series for y >= 16: the first term left out is below 1e-17.
FASTVAE_FN double binet(double w) {
  const double v = w * w;
  double p = -691.0 / 360360;
  p = p * v + 1.0 / 1188;
  p = p * v - 1.0 / 1680;
  p = p * v + 1.0 / 1260;
  p = p * v - 1.0 / 360;
  p = p * v + 1.0 / 12;
  return p * w;
}

FASTVAE_FN double binet_fall(double w) {
  const double v = w * w;
  double p = -691.0 / 32760;
  p = p * v + 1.0 / 132;
  p = p * v - 1.0 / 240;
  p = p * v + 1.0 / 252;
  p = p * v - 1.0 / 120;
  p = p * v + 1.0 / 12;
  return p * v;
}

FASTVAE_FN double binet_curvature(double w) {
  const double v = w * w;
  double p = -691.0 / 2730;
  p = p * v + 5.0 / 66;
  p = p * v - 1.0 / 30;
  p = p * v + 1.0 / 42;
  p = p * v - 1.0 / 30;
  p = p * v + 1.0 / 6;
  return p * (v * w);
}

// (f - log(1 + f)) / f^2 for 1 + f in [sqrt(1/2), sqrt(2)], relative error 6.8e-8.
FASTVAE_FN float log_curvature(float f, float f2) {
  return f * horner(f2, -0.333333135f, -0.200026959f, -0.141734615f, -0.129178271f) +
         horner(f2, 0.49999997f, 0.25000751f, 0.166289195f, 0.130725667f, 0.0806456655f);
}

// log y for 2^-126 <= y < 2^126. Max error 1.1 ulp. 0 gives -88: finite, so that a zero factor
// makes 0 of it.
FASTVAE_FN float log_positive(float y) {
  // y = 2^e (1 + f); 0x3f3504f3 is sqrt(1/2).
  const int32_t e = (bit_cast<int32_t>(y) - 0x3f3504f3) >> 23;
  const float f = y * bit_cast<float>((127 - e) << 23) - 1.0f, f2 = f * f;
  return static_cast<float>(e) * 0.693147182f + (f - f2 * log_curvature(f, f2));
}

// log(1 + x) and x - log(1 + x), each by itself accurate.
template <class T>
struct LogOnePlus {
  T value, deficit;
};

// For 0 <= x < 2^126. Max errors: 1.6 ulp and 4.7 ulp.
FASTVAE_FN LogOnePlus<float> log_one_plus(float x) {
  // 1 + x = 2^e (1 + f). The rounding of 1 + x moves e at most, not f.
  const int32_t e = (bit_cast<int32_t>(1.0f + x) - 0x3f3504f3) >> 23;
  const float scale = bit_cast<float>((127 - e) << 23), step = 1.0f - scale;
  const float n = static_cast<float>(e) * 0.693147182f;
  const float f = x * scale - step, f2 = f * f;
  const float curve = f2 * log_curvature(f, f2);
  // x - f = x step + step.
  return {n + (f - curve), (x * step + (step - n)) + curve};
}

FASTVAE_FN LogOnePlus<double> log_one_plus(double x) {
  if (!(x < 1.0)) {
    const double value = ::log1p(x);
    return {value, x - value};
  }
  // log(1 + x) = 2 (r + r^3/3 + r^5/5 + ...), r = x / (2 + x) <= 1/3, and x - 2 r = r x.
  const double r = x / (2.0 + x), v = r * r;
  double p = 0;
  for (int k = 39; k >= 3; k -= 2) p = p * v + 1.0 / k;
  const double deficit = r * x - 2.0 * (r * v) * p;
  return {::log1p(x), deficit};
}

// The least of x, y >= 0 and the largest finite number, but not less than `least` > 0. In integers,
// which is half the work: of these floats the order is that of their bits. NaN may be lost.
FASTVAE_FN float between(float least, float x, float y) {
  const int32_t most = bit_cast<int32_t>(std::numeric_limits<float>::max());
  const int32_t a = bit_cast<int32_t>(x), b = bit_cast<int32_t>(y), low = bit_cast<int32_t>(least);
  const int32_t lower = a < b ? a : b, finite = lower < most ? lower : most;
  return bit_cast<float>(finite > low ? finite : low);
}

FASTVAE_FN double between(double least, double x, double y) {
  const double most = std::numeric_limits<double>::max();
  const double lower = x < y ? x : y, finite = lower < most ? lower : most;
  return finite > least ? finite : least;
}

// e^x and e^x - 1, each by itself accurate.
template <class T>
struct Growth {
  T value, less_one;
};

// For -88 <= x <= 88. Max errors: 1.1 ulp and 1.8 ulp. The value is 0 below -87.7.
FASTVAE_FN Growth<float> growth(float x) {
  const Reduced t = reduce(x, 127.0f);
  const float r2 = t.r * t.r;
  const float curve = horner(r2, 0.5f, 0.0416662134f, 0.00139501761f) +
                      t.r * horner(r2, 0.166665196f, 0.00836874917f);
  const float rise = r2 * curve + t.r, scale = bit_cast<float>(t.bits << 23);
  return {scale * rise + scale, scale * rise + (scale - 1.0f)};
}

FASTVAE_FN Growth<double> growth(double x) { return {::exp(x), ::expm1(x)}; }

// For x <= 0.
FASTVAE_FN Growth<float> decay(float x) { return growth(x < -88.0f ? -88.0f : x); }
FASTVAE_FN Growth<double> decay(double x) { return growth(x); }

// e^x, but of what lies outside [-80, 87] that of the nearer end: neither 0 nor infinite, and so
// are quotients and products of two.
template <class T>
FASTVAE_FN T not_below_minus_80(T x) {
  return x < T(-80) ? T(-80) : x;
}

template <class T>
FASTVAE_FN T bounded_exp(T x) {
  const T low = not_below_minus_80(x);
  return growth(low > T(87) ? T(87) : low).value;
}

// (f - log(1 + f)) / f^2 for 0 <= f <= 1, absolute error 7.3e-9: 1/2 .. 1 - log 2.
FASTVAE_FN float log1p_curvature(float f) {
  const float f2 = f * f;
  return f * horner(f2, -0.333332568f, -0.199618667f, -0.131086111f, -0.0505568162f,
                    -0.00294802501f) +
         horner(f2, 0.5f, 0.249972686f, 0.163914159f, 0.0926622599f, 0.0178458951f);
}

FASTVAE_FN double log1p_curvature(double f) {
  return f < 1e-8 ? 0.5 - f * (1.0 / 3) : log_one_plus(f).deficit / f / f;
}

// log x! = log Gamma(1 + x) for x >= 0, with d/dx = digamma(1 + x) and d2/dx2 = trigamma(1 + x).
template <class T>
struct LogFactorial {
  T value, slope, curvature;
};

// The value is exactly 0 for 0 and 1; beside these, as beside the zero of the slope at 0.46, it is
// accurate to the last places by a polynomial of its own.
FASTVAE_FN LogFactorial<float> log_factorial_of(float x) {
  const float y = x + 1.0f, w = divide(1.0f, y);
  const float log_y = log_one_plus(x).value;
  const float s = (x < 2.0f ? x : 2.0f) - 1.0f;
  // log x! / (x (x - 1)) on [0, 2], relative error 2.7e-8.
  const float p = s * horner(s * s, -0.10031727f, -0.0123849772f, -0.00210205f, -0.000425597682f,
                             -5.23930867e-05f, -3.87438085e-05f) +
                  horner(s * s, 0.422784328f, 0.0329649448f, 0.0049994844f, 0.000910488598f,
                         0.000195835019f, 2.02167248e-05f, 1.93199285e-05f);
  // log(2 pi) / 2 - 1 = -S(1)
  const float far = (x + 0.5f) * log_y - (x - (binet(w) - 0.0810614668f));
  // digamma(1 + x) / (x - root) on [0, 1], relative error 6.2e-8.
  const float z = x < 1.0f ? x : 1.0f;
  const float q =
      z * horner(z * z, -0.85468775f, -0.711893201f, -0.611168563f, -0.267561555f, -0.0162213203f) +
      horner(z * z, 1.25038016f, 0.752274036f, 0.679556191f, 0.467709243f, 0.0969202667f);
  const float slope = log_y - (0.5f * w + binet_fall(w));
  return {x < 2.0f ? p * (x * s) : far,
          x < 1.0f ? q * ((z - 0.461632133f) - 1.24381499e-08f) : slope,
          w + (0.5f * (w * w) + binet_curvature(w))};
}

// Digamma and trigamma of y > 0, shifted up to 16.
FASTVAE_FN double digamma(double y) {
  double sum = 0;
  for (; y < 16.0; y += 1.0) sum += 1.0 / y;
  return ::log(y) - 0.5 / y - binet_fall(1.0 / y) - sum;
}

FASTVAE_FN double trigamma(double y) {
  double sum = 0;
  for (; y < 16.0; y += 1.0) sum += 1.0 / (y * y);
  const double w = 1.0 / y;
  return w + 0.5 * (w * w) + binet_curvature(w) + sum;
}

FASTVAE_FN LogFactorial<double> log_factorial_of(double x) {
  // 1 + x is rounded: near 0 the series of Euler's constant and the zeta function.
  const double series =
      x * (x * (0.82246703342411322 -
                x * (0.40068563438653143 - x * (0.27058080842778454 - x * 0.20738555102867399))) -
           0.57721566490153286);
  return {x < 1e-3 ? series : ::lgamma(x + 1.0), digamma(x + 1.0), trigamma(x + 1.0)};
}

template <class T>
FASTVAE_FN LogFactorial<Dual<T>> log_factorial_of(Dual<T> x) {
  const LogFactorial<T> f = log_factorial_of(x.value);
  return {{f.value, f.slope * x.tangent}, {f.slope, f.curvature * x.tangent}, f.curvature};
}

// What D(x, theta) = log Gamma(x + theta) - log Gamma(theta) - x log theta, for x, theta >= 0, and
// its derivatives are made of. With s = 1 for theta < 1, else 0, and `base` = theta + s:
struct RisingParts {
  bool shifted;            // s
  float base, sum, x_sum;  // base, x + base, x + theta
  float v, w;              // 1 / base, 1 / (x + base)
};

FASTVAE_FN RisingParts rising_parts(float x, float theta) {
  const bool shifted = theta < 1.0f;
  const float base = theta + (shifted ? 1.0f : 0.0f), sum = x + base;
  return {shifted, base, sum, x + theta, divide(1.0f, base), divide(1.0f, sum)};
}

// log(1 + x / base), and x / base less that: twice as sensitive to the quotient, which is rounded
// once on a GPU too.
FASTVAE_FN LogOnePlus<float> log_ratio(RisingParts r, float x) { return log_one_plus(x / r.base); }

// v - w is x v w, and v^2 - w^2 that times v + w: the differences below are multiples of x.

// S(base) - S(x + base)
FASTVAE_FN float binet_descent(RisingParts r, float x) {
  const Divided<float> s = binet_ratio(r.w * r.w, r.v * r.v);
  return x * (r.v * r.w) * (s.value + (r.v * (r.v + r.w)) * s.difference);
}

// digamma(x + base) - digamma(base) - log(1 + x / base)
FASTVAE_FN float digamma_bend(RisingParts r, float x) {
  const float v2 = r.v * r.v;
  const Divided<float> d = binet_fall_ratio(r.w * r.w, v2);
  return x * (r.v * r.w) * (0.5f + (r.v + r.w) * (d.value + v2 * d.difference));
}

// Beyond the larger of these bounds all is as for infinity.
FASTVAE_FN float bounded_theta(float theta) {
  const float positive = theta < 0x1p-120f ? 0x1p-120f : theta;
  return positive > 0x1p60f ? 0x1p60f : positive;
}
FASTVAE_FN double bounded_theta(double theta) { return theta > 0x1p200 ? 0x1p200 : theta; }

// D, and with d = digamma(x + theta) - digamma(theta): `climb` = theta d, `excess` = x - theta d,
// each by itself accurate, and `slope` = dD/dx = digamma(x + theta) - log theta. So
// theta dD/dtheta = -excess.
template <class T>
struct LogRising {
  T value, climb, excess, slope;
};

FASTVAE_FN LogRising<float> log_rising_of(float x, float size) {
  const float theta = bounded_theta(size);
  const RisingParts r = rising_parts(x, theta);
  const LogOnePlus<float> ratio = log_ratio(r, x);
  // (x + base - 1/2) log(1 + x / base) - x, for small x / base by what that exceeds the logarithm.
  const bool small = x < r.base;
  const float main = (r.sum - 0.5f) * (small ? -ratio.deficit : ratio.value) +
                     (small ? (x - 0.5f) * (x / r.base) : -x);
  // The shift, x log(base / theta) - log((x + theta) / theta).
  const float log_base = log_one_plus(theta).value;
  const float log_inverse =
      size == 0.0f && x > 0.0f ? std::numeric_limits<float>::infinity() : -log_positive(theta);
  const float shift = (x - 1.0f) * log_inverse + (x * log_base - log_positive(r.x_sum));
  const float value = main - binet_descent(r, x) + (r.shifted ? shift : 0.0f);
  const float inverse_x_sum = divide(1.0f, r.x_sum), bend = digamma_bend(r, x);
  // For theta < 1, x - theta x / base and the shift's x / (x + theta) make the last term.
  const float excess =
      theta * (ratio.deficit - bend) + (r.shifted ? x * inverse_x_sum * ((x - 1.0f) * r.v) : 0.0f);
  const bool vanishes = x == 0.0f || x == 1.0f || size > std::numeric_limits<float>::max();
  return {vanishes ? 0.0f : value,
          theta * (ratio.value + bend) + (r.shifted ? x * inverse_x_sum : 0.0f),
          x == 1.0f ? 0.0f : excess,
          ratio.value - (0.5f * r.w + binet_fall(r.w)) +
              (r.shifted ? (log_base + log_inverse) - inverse_x_sum : 0.0f)};
}

FASTVAE_FN LogRising<double> log_rising_of(double x, double size) {
  const double theta = bounded_theta(size);
  const double infinity = std::numeric_limits<double>::infinity();
  if (theta == 0.0)
    return {x > 1.0                ? infinity
            : x == 0.0 || x == 1.0 ? 0.0
                                   : -infinity,
            x > 0.0 ? 1.0 : 0.0, x > 0.0 ? x - 1.0 : 0.0, x > 0.0 ? infinity : -infinity};
  // Shifted up to 16 by the recurrence.
  double y = theta, logs = 0, quotients = 0, inverses = 0;
  for (; y < 16.0; y += 1.0) {
    logs += ::log1p(x / y);
    quotients += x / (y * (x + y));
    inverses += 1.0 / (x + y);
  }
  const double sum = x + y, t = x / y, log_base = ::log(y / theta);
  const LogOnePlus<double> ratio = log_one_plus(t);
  const double main =
      t < 1.0 ? (x - 0.5) * t - (sum - 0.5) * ratio.deficit : (sum - 0.5) * ratio.value - x;
  const double value = main + (binet(1.0 / sum) - binet(1.0 / y)) + (x * log_base - logs);
  const double bend = 0.5 * x / sum / y + (binet_fall(1.0 / y) - binet_fall(1.0 / sum));
  const double climb = theta * (ratio.value + bend + quotients);
  const double excess = y > theta ? x - climb : theta * (ratio.deficit - bend);
  const bool vanishes = x == 0.0 || x == 1.0 || size == infinity;
  return {vanishes ? 0.0 : value, x == 0.0 ? 0.0 : climb, x == 0.0 || x == 1.0 ? 0.0 : excess,
          ratio.value + log_base - 0.5 / sum - binet_fall(1.0 / sum) - inverses};
}

// Second derivatives: `xx` = d2D/dx2 = trigamma(x + theta), `x_theta` = theta d2D/dxdtheta =
// theta trigamma(x + theta) - 1, `theta_theta` = theta^2 d2D/dtheta2 =
// theta^2 (trigamma(x + theta) - trigamma(theta)) + x.
template <class T>
struct LogRisingSecond {
  T xx, x_theta, theta_theta;
};

// Within 1e-5 of the largest term.
FASTVAE_FN LogRisingSecond<float> log_rising_second(float x, float size) {
  const float theta = bounded_theta(size);
  const RisingParts r = rising_parts(x, theta);
  const float w = r.w, v = r.v, inverse_x_sum = divide(1.0f, r.x_sum), q = theta * inverse_x_sum;
  const float rest = 0.5f * (w * w) + binet_curvature(w);
  const float rest_base = 0.5f * (v * v) + binet_curvature(v);
  // theta^2 (1 / (x + base) - 1 / base) + x = x - theta^2 x / (base (x + base)).
  const float part = theta * v * (theta * w);
  return {(w + rest) + (r.shifted ? inverse_x_sum * inverse_x_sum : 0.0f),
          theta * (w + rest) - 1.0f + (r.shifted ? q * inverse_x_sum : 0.0f),
          (x - x * part) + theta * (theta * (rest - rest_base)) +
              (r.shifted && x > 0.0f ? q * q - 1.0f : 0.0f)};
}

FASTVAE_FN LogRisingSecond<double> log_rising_second(double x, double size) {
  const double theta = bounded_theta(size);
  // theta^2 trigamma(theta) tends to 1.
  if (theta == 0.0) {
    const double xx = x > 0.0 ? trigamma(x) : std::numeric_limits<double>::infinity();
    return {xx, x > 0.0 ? -1.0 : xx, x > 0.0 ? x - 1.0 : 0.0};
  }
  const double xx = trigamma(x + theta);
  return {xx, theta * xx - 1.0, theta * theta * (xx - trigamma(theta)) + x};
}

}  // namespace fastvae::math

namespace fastvae::formulas {

// Errors in float, for counts, in u of the sum of the terms' sizes:
//   nll    6.5  theta log(1 + mu / theta), x log((mu + theta) / mu) - x max(b, 0),
//               log Gamma(x + theta) / Gamma(theta) - x max(b, 0), log x!: of x = 0 the first alone
//   d/da   5.5  (mu + x) theta / (mu + theta)
//   d/db  22    theta log(1 + mu / theta) - theta mu / (mu + theta) =: h, d of log_rising_of;
//               mu < theta: h, x - theta d and x mu / (mu + theta); else h, theta d and
//               x theta / (mu + theta). Or 9 where each difference counts as two terms.
//   d/dx   9    log((mu + theta) / mu) - max(b, 0), digamma(x + theta) - max(b, 0), digamma(1 + x)
// With 1 among its terms, that of nll holds for every real x >= 0. Means and theta outside
// [e^-80, e^87] count as the nearer of these.

// Counts x >= 0 (as a rule integers) with the log mean a, mu = e^a, and the log of the inverse
// dispersion b, theta = e^b: variance mu + mu^2 / theta. Derivatives of the loss by a, b and x.
template <class T>
struct CountLoss {
  T nll, grad_log_mean, grad_log_theta, grad_x;
};

// What does not depend on x; f = e^-|a - b|.
template <class T>
struct CountMean {
  T theta, f, inverse, size, log1p;  // theta, f, 1 / (1 + f), min(mu, theta), log(1 + f)
  T zero, zero_grad;                 // theta log(1 + mu / theta), the loss of x = 0, and its d/db
};

// theta is bounded_exp(b). f is a quotient, not a power of the rounded a - b.
template <class T>
FASTVAE_FN CountMean<T> count_mean(T a, T b, T theta) {
  const bool below = a <= b;
  const T mu = math::bounded_exp(a);
  const T size = below ? mu : theta, f = math::divide(size, below ? theta : mu);
  const T curve = math::log1p_curvature(f), inverse = math::divide(T(1), T(1) + f);
  const T log1p = f - f * f * curve;
  const T gap = math::not_below_minus_80(a) - math::not_below_minus_80(b);
  // theta = size and mu / theta = 1 / f, or mu = size and theta = mu / f.
  return {theta,
          f,
          inverse,
          size,
          log1p,
          size * (below ? T(1) - f * curve : gap + log1p),
          size * (below ? f * (inverse - curve) : gap + (log1p - inverse))};
}

// The loss less that of x = 0, and the part of its d/db that depends on x, for x > 0.
template <class T>
struct CountRest {
  T nll, grad_log_theta, grad_x;
};

FASTVAE_FN CountRest<float> count_rest(CountMean<float> m, float a, float b, float x) {
  const bool below = a <= b;
  const math::RisingParts r = math::rising_parts(x, m.theta);
  const float low = b < 0.0f ? b : 0.0f, high = b < 0.0f ? 0.0f : b, y = 1.0f + x;
  // log((mu + theta) / mu) + log(1 + x) - log(x + base). `large` is taken out of the logarithm.
  const float large = a < b ? low - a : -high;
  const float line = (large < -87.0f ? -87.0f : large) +
                     math::log_positive((1.0f + m.f) * y * ((r.shifted ? 1.0f : m.theta) * r.w));
  // log(1 + x) / 2, and log((x + theta) / theta) of the shift.
  const float rest = math::log_positive(math::sqrt(y) * (r.shifted ? r.x_sum : 1.0f)) - low;
  const float inverse_y = math::divide(1.0f, y);
  const float binets = math::binet(inverse_y) - 0.0810614668f + math::binet_descent(r, x);
  const math::LogOnePlus<float> ratio = math::log_ratio(r, x);
  const float nll = x * line + (rest + (binets - (r.base - 0.5f) * ratio.value));
  // mu < theta: (x - theta d) - x mu / (mu + theta); else x theta / (mu + theta) - theta d.
  const float inverse_x_sum = math::divide(1.0f, r.x_sum), share = x * (m.f * m.inverse);
  const float far = x * inverse_x_sum * (below ? (x - 1.0f) * r.v : -1.0f);
  const float climb =
      m.theta * ((below ? ratio.deficit : -ratio.value) - math::digamma_bend(r, x)) +
      (r.shifted ? far : 0.0f);
  return {x == 0.0f ? 0.0f : nll, (below && x == 1.0f ? 0.0f : climb) + (below ? -share : share),
          line +
              (0.5f * (r.w - inverse_y) + (math::binet_fall(r.w) - math::binet_fall(inverse_y))) +
              (r.shifted ? inverse_x_sum : 0.0f)};
}

FASTVAE_FN CountRest<double> count_rest(CountMean<double> m, double a, double b, double x) {
  const bool below = a <= b;
  const double theta = m.theta;
  const math::LogRising<double> r = math::log_rising_of(x, theta);
  const bool shifted = theta < 1.0;
  const double low = b < 0.0 ? b : 0.0, high = b < 0.0 ? 0.0 : b;
  const double large = a < b ? low - a : -high;
  const double line = (large < -87.0 ? -87.0 : large) + m.log1p;
  const double share = x * (m.f * m.inverse);
  const double rising = shifted ? ::lgamma(x + theta) - ::lgamma(1.0 + theta) + b : r.value;
  const double slope = shifted ? math::digamma(x + theta) : r.slope;
  return {x == 0.0 ? 0.0 : x * line + math::log_factorial_of(x).value - rising,
          below ? r.excess - share : share - r.climb, line + math::digamma(1.0 + x) - slope};
}

// -log of the negative binomial probability of x. x = 0 needs `count_mean` alone.
template <class T>
FASTVAE_FN CountLoss<T> negative_binomial(CountMean<T> m, T a, T b, T x) {
  const CountRest<T> rest = count_rest(m, a, b, x);
  return {m.zero + rest.nll, (m.size - (a <= b ? x : x * m.f)) * m.inverse,
          m.zero_grad + rest.grad_log_theta, rest.grad_x};
}

// With theta = bounded_exp(b) where many elements share one b, or without.
template <class T>
FASTVAE_FN CountLoss<T> negative_binomial(T a, T b, T x, T theta) {
  return negative_binomial(count_mean(a, b, theta), a, b, x);
}

template <class T>
FASTVAE_FN CountLoss<T> negative_binomial(T a, T b, T x) {
  return negative_binomial(a, b, x, math::bounded_exp(b));
}

template <class T>
FASTVAE_FN CountLoss<T> negative_binomial_of_zero(T a, T b) {
  const CountMean<T> m = count_mean(a, b, math::bounded_exp(b));
  return {m.zero, m.size * m.inverse, m.zero_grad, T(0)};
}

// With mu / (mu + theta) =: p and tau = trigamma(x + theta) - trigamma(theta), the second
// derivatives are, by a twice, theta (x + theta) p / (mu + theta); by a and b, theta (mu - x) p /
// (mu + theta); by b twice, d/db - x (1 - p) - theta^2 tau less that one; by x and a, p - 1; by x
// and b, 1 - p - theta trigamma(x + theta); by x twice, trigamma(1 + x) - trigamma(x + theta).
template <class T>
FASTVAE_FN CountLoss<Dual<T>> negative_binomial(Dual<T> a, Dual<T> b, Dual<T> x) {
  const T theta = math::bounded_exp(b.value);
  const CountMean<T> m = count_mean(a.value, b.value, theta);
  const CountLoss<T> loss = negative_binomial(m, a.value, b.value, x.value);
  const bool below = a.value <= b.value;
  // p, 1 - p and mu.
  const T p = below ? m.f * m.inverse : m.inverse, rest = below ? m.inverse : m.f * m.inverse;
  const T mu = math::bounded_exp(a.value);
  const math::LogRisingSecond<T> rising = math::log_rising_second(x.value, theta);
  const T aa = rest * p * (x.value + theta), ab = rest * p * (mu - x.value);
  const T bb = loss.grad_log_theta + (x.value * p - rising.theta_theta) - ab;
  const T xb = -p - rising.x_theta;
  const T xx = math::log_factorial_of(x.value).curvature - rising.xx;
  return {{loss.nll, loss.grad_log_mean * a.tangent + loss.grad_log_theta * b.tangent +
                         loss.grad_x * x.tangent},
          {loss.grad_log_mean, aa * a.tangent + ab * b.tangent - rest * x.tangent},
          {loss.grad_log_theta, ab * a.tangent + bb * b.tangent + xb * x.tangent},
          {loss.grad_x, xb * b.tangent + xx * x.tangent - rest * a.tangent}};
}

template <class T>
struct ZeroInflatedLoss {
  T nll, grad_log_mean, grad_log_theta, grad_logit, grad_x;
};

// With the probability sigmoid(l) of a zero beside those of `count`, the loss of x:
// log(1 + (1 - e^-t) / (e^l + e^-t)) for x = 0, t = count.nll; softplus(l) + count.nll else.
// d/dx is 0 at x = 0.
template <class T>
FASTVAE_FN ZeroInflatedLoss<T> zero_inflated(CountLoss<T> count, T l, T x) {
  const bool zero = x == T(0), positive = l > T(0);
  const T t = zero ? count.nll : T(0), size = math::abs(l);
  // Where e^l and e^-t are both below e^-32, in double e^-40, all is relative to the larger, and c
  // is added.
  const T far = sizeof(T) == sizeof(double) ? T(40) : T(32);
  const T c = math::between(far, -l, t) - far;
  const T odds = math::decay(c - size).value;
  const math::Growth<T> e = math::decay(c - t);
  // Numerators and denominator are divided by e^l where l > 0.
  const T one = positive ? odds : T(1), weight = positive ? T(1) : odds;
  const T hit = math::divide(T(1), (weight + one * e.value) + T(0x1p-120));
  const T inverse = math::divide(T(1), T(1) + odds);
  const T ratio = -e.less_one * one * hit;
  const T share = zero ? one * e.value * hit : T(1);
  return {(zero ? c : (positive ? l : T(0)) + count.nll) +
              math::log_one_plus(zero ? ratio : odds).value,
          share * count.grad_log_mean, product_or_zero(share, count.grad_log_theta),
          weight * inverse * (zero ? -ratio : T(1)), zero ? T(0) : count.grad_x};
}

// By the probabilities: softplus(l) + t - softplus(l + t) for x = 0.
template <class T>
FASTVAE_FN ZeroInflatedLoss<Dual<T>> zero_inflated(CountLoss<Dual<T>> count, Dual<T> l, Dual<T> x) {
  const bool zero = x.value == T(0);
  const Dual<T> t = count.nll, sum = l + t;
  const Dual<T> p = sigmoid(l, odds(l));
  const Dual<T> miss = zero ? sigmoid(-sum, odds(sum)) : Dual<T>(T(1));
  // The values by the function above; the derivatives of these are those of what follows.
  const CountLoss<T> values{count.nll.value, count.grad_log_mean.value, count.grad_log_theta.value,
                            count.grad_x.value};
  const ZeroInflatedLoss<T> loss = zero_inflated(values, l.value, x.value);
  const auto with = [](T value, Dual<T> of) { return Dual<T>(value, of.tangent); };
  const Dual<T> by_logit = zero ? p + miss - Dual<T>(T(1)) : p;
  return {Dual<T>(loss.nll, loss.grad_logit * l.tangent + miss.value * t.tangent),
          with(loss.grad_log_mean, miss * count.grad_log_mean),
          with(loss.grad_log_theta, miss * count.grad_log_theta), with(loss.grad_logit, by_logit),
          zero ? Dual<T>(T(0)) : count.grad_x};
}

}  // namespace fastvae::formulas
