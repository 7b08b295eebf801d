// The shares of a row, softmax(x) of its logits, and their logarithms. A first pass finds what all
// elements of a row need: its largest element, and the sum of e^(x - largest).
#include "../simd_math.h"
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {
namespace {

// x - max, and 0 where both are infinite.
template <class T>
FASTVAE_FN T below(T x, T max) {
  return x == max ? T(0) : x - max;
}

}  // namespace

void sum_exp(Extent extent, Input x, PerRow max, Sums out) {
  row_sum(
      extent, out, [] FASTVAE_LAMBDA(auto x, auto max) { return math::exp(below(x, max)); }, x,
      max);
}

void log_shares(Extent extent, Input x, PerRow max, PerRow shift, Output out) {
  map(
      extent, {out},
      [] FASTVAE_LAMBDA(auto x, auto max, auto shift) { return values(below(x, max) + shift); }, x,
      max, shift);
}

void log_shares_backward(Extent extent, Input grad, Input x, PerRow max, PerRow log_sum,
                         PerRow total, Output out) {
  map(
      extent, {out},
      [] FASTVAE_LAMBDA(auto grad, auto x, auto max, auto log_sum, auto total) {
        return values(grad - math::exp(below(x, max) - log_sum) * total);
      },
      grad, x, max, log_sum, total);
}

}  // namespace fastvae::FASTVAE_DEVICE
