// The return type of the functions that a loop runs.
#pragma once

#include "../formulas.h"
#include "../kernels.h"

namespace fastvae {
namespace {

// What a loop sums over the rows: nothing, terms, or terms and logarithms.
enum class Sum { none, terms, logs };

// `weight` * `size` + log(1 + `factor`) is summed over the row, without the product where the
// weight is 0; value[0 .. N-1] go to the outputs.
template <class T, int N>
struct Values {
  static constexpr int count = N;
  T weight, size, factor;
  T value[N > 0 ? N : 1];
};

template <class T, class... V>
FASTVAE_FN Values<T, 1 + sizeof...(V)> values(T first, V... rest) {
  return {T(0), T(0), T(0), {first, rest...}};
}

template <class T, class... V>
FASTVAE_FN Values<T, sizeof...(V)> term_and_values(T term, V... rest) {
  return {T(1), term, T(0), {rest...}};
}

template <class T, class... V>
FASTVAE_FN Values<T, sizeof...(V)> term_and_values(formulas::LogTerm<T> parts, V... rest) {
  return {parts.weight, parts.size, parts.factor, {rest...}};
}

// Row sums that are summed in their turn.
struct Column {
  Sums sums;
  int64_t rows;
};

}  // namespace
}  // namespace fastvae
