// The table of likelihoods. Each row has the formulas of a likelihood and everything that its
// kernels (kernels/likelihood.cpp), its operator (ops/likelihood.cpp) and its tests need to know.
#pragma once

#include "gamma.h"
#include "kernels.h"

// Each has a struct of its name, below.
#define FASTVAE_EACH_LIKELIHOOD(_) \
  _(sigmoid_cross_entropy)         \
  _(continuous_bernoulli_nll)      \
  _(binomial_nll)                  \
  _(discretized_logistic_nll)      \
  _(gaussian_nll)                  \
  _(laplace_nll)                   \
  _(poisson_nll)                   \
  _(multinomial_nll)               \
  _(negative_binomial_nll)         \
  _(zero_inflated_negative_binomial_nll)

namespace fastvae {

#define FASTVAE_ENUMERATOR(name) name,
enum class Likelihood : uint8_t { FASTVAE_EACH_LIKELIHOOD(FASTVAE_ENUMERATOR) };
#undef FASTVAE_ENUMERATOR

namespace likelihoods {

using formulas::LogTerm;
using math::product_or_zero;

// What a target holds.
enum class Data : uint8_t {
  probabilities,  // in [0, 1]; uint8 is read as x / 255
  real,           // likewise, in any range
  counts,         // 0, 1, 2, ..., in integers or in floating point
  levels,         // 0 .. 255, in uint8
};

// Whether an integer is the number itself, not an image's.
constexpr bool is_count(Data data) { return data == Data::counts || data == Data::levels; }

// Whether its first parameter, the logarithm of a mean, is found from the logits of shares: mean =
// library * softmax(logits), the softmax over the event.
enum class Shares : uint8_t {
  never,
  of_library,  // where there is the logarithm of one, by row
  always,      // where there is none, it is 1
};

// What a likelihood gives of one element: its negative logarithm in nats, a number or a LogTerm,
// and the derivatives of that by the target and by each parameter. What a pass does not use is not
// computed.
template <class T, class Nll, int N>
struct Element {
  Nll nll;
  T grad_target;
  T grad[N];
};

template <class Nll, class T, class... G>
FASTVAE_FN auto element(Nll nll, T grad_target, G... grad) {
  return Element<T, Nll, sizeof...(G)>{nll, grad_target, {grad...}};
}

struct Defaults {
  // Whether the last parameter may be broadcast to the first one's shape.
  static constexpr bool last_is_shared = false;
  // Whether that is a count too.
  static constexpr bool last_is_count = false;
  static constexpr Shares shares = Shares::never;
  // In the target, whose derivative then needs no target.
  static constexpr bool is_linear = false;
};

// Of probability sigmoid(l).
struct sigmoid_cross_entropy : Defaults {
  static constexpr const char* parameters[] = {"logits"};
  static constexpr Data data = Data::probabilities;
  static constexpr bool is_linear = true;

  // -log Bernoulli(x) = max(l, 0) - l x + log(1 + e^-|l|). The first two terms are |l| (1 - x) for
  // l >= 0 and |l| x for l < 0: no cancellation, and 0 for a sure and right prediction. d/dl =
  // sigmoid(l) - x is the miss of the likelier outcome less the probability of the other one, or
  // the negative of that: where x is 0 or 1, nothing cancels.
  template <class T>
  FASTVAE_FN auto of(T l, T x) {
    const T odds = formulas::odds(l);
    const T miss = l < T(0) ? x : T(1) - x;
    const T beyond = miss - math::divide(odds, T(1) + odds);
    return element(LogTerm<T>{miss, math::abs(l), odds}, -l, l < T(0) ? -beyond : beyond);
  }
};

// Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845.
struct continuous_bernoulli_nll : Defaults {
  static constexpr const char* parameters[] = {"logits"};
  static constexpr Data data = Data::probabilities;
  static constexpr bool is_linear = true;

  // (mean of logit y less 1/2) / y = (coth(y / 2) - 2 / y) / (2 y) for 0 <= y < 1, by Bernoulli's
  // numbers: the first term left out is below 2^-53.
  template <class T>
  FASTVAE_FN T slope(T y) {
    return math::horner(y * y, T(1.0 / 12), T(-1.0 / 720), T(1.0 / 30240), T(-1.0 / 1209600),
                        T(1.0 / 47900160), T(-691.0 / 1307674368000), T(1.0 / 74724249600),
                        T(-3617.0 / 10670622842880000), T(43867.0 / 5109094217170944000),
                        T(-174611.0 / 802857662698291200000.0));
  }

  // Of the likelier end, the mean is 1 - q, and the normalising constant |l| / (1 - e^-|l|) is
  // 1 + |l| (1 - q): -log p(x) = |l| (1 - x or x) - log(1 + |l| (1 - q)), and its d/dl what of the
  // Bernoulli distribution it is, with q in the place of the probability.
  template <class T>
  FASTVAE_FN auto of(T l, T x) {
    const T y = math::abs(l), odds = formulas::odds(l);
    const T rise = y * slope(y);
    const T q = y < T(1) ? T(0.5) - rise : math::divide(T(1), y) - math::divide(odds, T(1) - odds);
    const T miss = l < T(0) ? x : T(1) - x;
    const T size = product_or_zero(miss, y);
    const T excess = y < T(1) ? y * (T(0.5) + rise) : y * (T(1) - q);
    const T beyond = miss - q;
    return element(
        math::is_infinite(size) ? size : size - (math::is_infinite(y) ? y : math::log1p(excess)),
        -l, l < T(0) ? -beyond : beyond);
  }
};

struct binomial_nll : Defaults {
  static constexpr const char* parameters[] = {"logits", "total"};
  static constexpr Data data = Data::counts;
  static constexpr bool last_is_shared = true;
  static constexpr bool last_is_count = true;

  // -log Binomial(x | n, sigmoid(l)): n times what it is for a Bernoulli variable, without the
  // cancellation likewise, less the logarithm of the binomial coefficient.
  template <class T>
  FASTVAE_FN auto of(T l, T n, T x) {
    const T odds = formulas::odds(l), log_odds = math::log1p(odds);
    const T miss = l < T(0) ? x : n - x, size = math::abs(l);
    const T beyond = miss - n * math::divide(odds, T(1) + odds);
    const auto all = math::log_factorial_of(n), ones = math::log_factorial_of(x),
               zeros = math::log_factorial_of(n - x);
    const T constant = (ones.value + zeros.value) - all.value;
    return element(product_or_zero(miss, size) + n * log_odds + constant,
                   ones.slope - zeros.slope - l, l < T(0) ? -beyond : beyond,
                   (l < T(0) ? T(0) : size) + log_odds + (zeros.slope - all.slope));
  }
};

// Salimans et al. 2017, arXiv:1701.05517, eq. 2.
struct discretized_logistic_nll : Defaults {
  static constexpr const char* parameters[] = {"mean", "log_scale"};
  static constexpr Data data = Data::levels;
  static constexpr bool last_is_shared = true;

  // With d the width of a level in scales, and u and v what its ends are from the mean:
  // softplus(-u)
  // + softplus(v) - log(1 - e^-d), because sigmoid(u) - sigmoid(v) = sigmoid(u) sigmoid(-v) (1 -
  // e^-d); of the lowest level the first term alone, of the highest the second. One logarithm of
  // all, that of 1 + z.
  template <class T>
  FASTVAE_FN auto of(T mean, T log_scale, T x) {
    const T d = math::exp(-log_scale) * T(1.0 / 255);
    const T from_mean = x - T(255) * mean;
    const T u = product_or_zero(from_mean + T(0.5), d), v = product_or_zero(from_mean - T(0.5), d);
    const bool has_u = x<T(255), has_v = x> T(0);
    const T odds_u = formulas::odds(u), odds_v = formulas::odds(v);
    const T below = has_u ? odds_u : T(0), above = has_v ? odds_v : T(0);
    const auto power = math::exponential_of(-d);
    const T miss = (has_u && u < T(0) ? -u : T(0)) + (has_v && v > T(0) ? v : T(0));
    const T sum = below + above;
    const T z =
        has_u && has_v ? math::divide(sum + below * above + power.value, -power.less_one) : sum;
    const T by_u = has_u ? formulas::sigmoid(-u, odds_u) : T(0);
    const T by_v = has_v ? formulas::sigmoid(v, odds_v) : T(0);
    const T by_d = has_u && has_v ? math::divide(power.value, -power.less_one) : T(0);
    return element(math::is_infinite(z) ? z : miss + math::log1p(z), T(0),
                   T(255) * product_or_zero(by_u - by_v, d),
                   product_or_zero(by_u, u) - product_or_zero(by_v, v) + product_or_zero(by_d, d));
  }
};

struct gaussian_nll : Defaults {
  static constexpr const char* parameters[] = {"mean", "logvar"};
  static constexpr Data data = Data::real;
  static constexpr bool last_is_shared = true;
  // What may stand for the last parameter, one number for all elements, and how many of its
  // logarithms that parameter is.
  static constexpr const char* scale = "sigma";
  static constexpr double logarithms = 2;

  template <class T>
  FASTVAE_FN auto of(T mean, T logvar, T x) {
    return of_scale(mean, x, logvar, formulas::inverse_deviation(logvar));
  }

  // -log N(x | mean, e^logvar) = (log 2 pi + logvar + ((x - mean) / sigma)^2) / 2; a miss where
  // sigma is 0 is infinitely bad. `inverse` is 1 / sigma: squares of standardised differences
  // neither overflow nor vanish as those of differences do.
  template <class T>
  FASTVAE_FN auto of_scale(T mean, T x, T logvar, T inverse) {
    const T standardised = product_or_zero(mean - x, inverse);
    const T square = standardised * standardised;
    const T log_two_pi = T(1.8378770664093454836);
    const T by_mean = product_or_zero(standardised, inverse);
    return element(T(0.5) * (math::is_infinite(square) ? square : log_two_pi + logvar + square),
                   -by_mean, by_mean, T(0.5) * (T(1) - square));
  }
};

struct laplace_nll : Defaults {
  static constexpr const char* parameters[] = {"mean", "log_scale"};
  static constexpr Data data = Data::real;
  static constexpr bool last_is_shared = true;
  static constexpr const char* scale = "scale";
  static constexpr double logarithms = 1;

  template <class T>
  FASTVAE_FN auto of(T mean, T log_scale, T x) {
    return of_scale(mean, x, log_scale, math::exp(-log_scale));
  }

  // |x - mean| / scale + log scale + log 2; a miss where the scale is 0 is infinitely bad.
  template <class T>
  FASTVAE_FN auto of_scale(T mean, T x, T log_scale, T inverse) {
    const T size = product_or_zero(math::abs(mean - x), inverse);
    const T by_mean = mean < x ? -inverse : mean > x ? inverse : T(0) * (mean - x);
    return element(math::is_infinite(size) ? size : size + log_scale + T(0.69314718055994530942),
                   -by_mean, by_mean, T(1) - size);
  }
};

struct poisson_nll : Defaults {
  static constexpr const char* parameters[] = {"log_rate"};
  static constexpr Data data = Data::counts;

  // e^a - x a + log x!
  template <class T>
  FASTVAE_FN auto of(T a, T x) {
    const T rate = math::exp(a);
    const auto factorial = math::log_factorial_of(x);
    return element(math::is_infinite(rate) ? rate : rate - product_or_zero(x, a) + factorial.value,
                   factorial.slope - a, rate - x);
  }
};

struct multinomial_nll : Defaults {
  static constexpr const char* parameters[] = {"logits"};
  static constexpr Data data = Data::counts;
  static constexpr Shares shares = Shares::always;
  static constexpr bool is_linear = true;

  // -x log p, without the coefficient, which no parameter changes; a is log p. A count of 0 makes 0
  // of the logarithm of 0, and not of NaN.
  template <class T>
  FASTVAE_FN auto of(T a, T x) {
    return element(a < T(0) ? product_or_zero(x, -a) : x * -a, -a, -x);
  }
};

// Of mean e^a and inverse dispersion theta = e^b: variance mu + mu^2 / theta.
struct negative_binomial_nll : Defaults {
  static constexpr const char* parameters[] = {"log_mean", "log_theta"};
  static constexpr Data data = Data::counts;
  static constexpr Shares shares = Shares::of_library;
  static constexpr bool last_is_shared = true;

  template <class T>
  FASTVAE_FN auto of(T a, T b, T x) {
    return element_of(formulas::negative_binomial(a, b, x));
  }

  // Most counts are 0 where there are many of them.
  static constexpr bool knows_zeros = true;
  template <class T>
  FASTVAE_FN auto of_zero(T a, T b) {
    return element_of(formulas::negative_binomial_of_zero(a, b));
  }

 private:
  template <class T>
  FASTVAE_FN auto element_of(formulas::CountLoss<T> loss) {
    return element(loss.nll, loss.grad_x, loss.grad_log_mean, loss.grad_log_theta);
  }
};

// The same, or 0 with probability sigmoid(l).
struct zero_inflated_negative_binomial_nll : Defaults {
  static constexpr const char* op = "fastvae.negative_binomial_nll";
  static constexpr const char* parameters[] = {"log_mean", "zero_logits", "log_theta"};
  static constexpr Data data = Data::counts;
  static constexpr Shares shares = Shares::of_library;
  static constexpr bool last_is_shared = true;

  template <class T>
  FASTVAE_FN auto of(T a, T l, T b, T x) {
    return element_of(formulas::negative_binomial(a, b, x), l, x);
  }

  static constexpr bool knows_zeros = true;
  template <class T>
  FASTVAE_FN auto of_zero(T a, T l, T b) {
    return element_of(formulas::negative_binomial_of_zero(a, b), l, T(0));
  }
  // The same in two steps, of which each has the registers that it needs.
  static constexpr int between = 3;
  template <class T>
  FASTVAE_FN auto first_of_zero(T a, T, T b) {
    const auto count = formulas::negative_binomial_of_zero(a, b);
    return element(count.nll, T(0), count.grad_log_mean, count.grad_log_theta);
  }
  template <class T>
  FASTVAE_FN auto second_of_zero(T nll, T by_mean, T by_theta, T, T l, T) {
    return element_of(formulas::CountLoss<T>{nll, by_mean, by_theta, T(0)}, l, T(0));
  }

 private:
  template <class T>
  FASTVAE_FN auto element_of(formulas::CountLoss<T> count, T l, T x) {
    const auto loss = formulas::zero_inflated(count, l, x);
    return element(loss.nll, loss.grad_x, loss.grad_log_mean, loss.grad_logit, loss.grad_log_theta);
  }
};

template <class L>
constexpr int count = static_cast<int>(sizeof(L::parameters) / sizeof(L::parameters[0]));

template <class L>
constexpr bool has_scale = requires { L::scale; };

// The same as values, for code that learns at run time which likelihood it is.
struct Row {
  const char *name, *op;
  const char* parameters[kMostParameters];
  int count;
  Data data;
  Shares shares;
  bool last_is_shared, last_is_count;
  const char* scale;  // null if none can stand for the last parameter
  double logarithms;
};

template <class L>
constexpr Row row(const char* name, const char* op) {
  Row row{name,    op, {}, count<L>, L::data, L::shares, L::last_is_shared, L::last_is_count,
          nullptr, 0};
  if constexpr (requires { L::op; }) row.op = L::op;
  for (int i = 0; i < count<L>; ++i) row.parameters[i] = L::parameters[i];
  if constexpr (has_scale<L>) {
    row.scale = L::scale;
    row.logarithms = L::logarithms;
  }
  return row;
}

#define FASTVAE_ROW(name) row<name>(#name, "fastvae." #name),
constexpr Row table[] = {FASTVAE_EACH_LIKELIHOOD(FASTVAE_ROW)};
#undef FASTVAE_ROW
constexpr int kCount = static_cast<int>(sizeof(table) / sizeof(table[0]));

}  // namespace likelihoods
}  // namespace fastvae
