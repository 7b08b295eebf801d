// The likelihoods, each a row of one table: its formulas, and what its kernels
// (kernels/likelihood.cpp), its operator (ops/likelihood.cpp) and its tests need to know of it.
#pragma once

#include "formulas.h"
#include "kernels.h"

// Each has a struct of its name, below.
#define FASTVAE_EACH_LIKELIHOOD(_) \
  _(sigmoid_cross_entropy)         \
  _(gaussian_nll)

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
  bool last_is_shared;
  const char* scale;  // null if none can stand for the last parameter
  double logarithms;
};

template <class L>
constexpr Row row(const char* name, const char* op) {
  Row row{name, op, {}, count<L>, L::data, L::last_is_shared, nullptr, 0};
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
