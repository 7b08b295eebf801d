// sigmoid_cross_entropy and its derivatives.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void sigmoid_cross_entropy(Extent extent, Input logits, Target target, Sums out) {
  row_sum<Sum::logs>(
      extent, out,
      [] FASTVAE_LAMBDA(auto l, auto x) {
        return formulas::sigmoid_cross_entropy(l, x, formulas::odds(l));
      },
      logits, target);
}

void sigmoid_cross_entropy_with_grad(Extent extent, Input logits, Target target, double scale,
                                     Sums out, Output grad_logits) {
  row_sum_and_map<Sum::logs>(
      extent, out, {grad_logits},
      [scale] FASTVAE_LAMBDA(auto l, auto x) {
        using T = decltype(l);
        const T odds = formulas::odds(l);
        return term_and_values(
            formulas::sigmoid_cross_entropy(l, x, odds),
            static_cast<T>(scale) * formulas::sigmoid_cross_entropy_grad_logits(l, x, odds));
      },
      logits, target);
}

void sigmoid_cross_entropy_backward(Extent extent, PerRow grad, Input logits, Target target,
                                    Output grad_logits) {
  map(
      extent, {grad_logits},
      [] FASTVAE_LAMBDA(auto g, auto l, auto x) {
        return values(g * formulas::sigmoid_cross_entropy_grad_logits(l, x, formulas::odds(l)));
      },
      grad, logits, target);
}

void sigmoid_cross_entropy_backward_target(Extent extent, PerRow grad, Input logits,
                                           Output grad_target) {
  map_folding(
      extent, {grad_target},
      [] FASTVAE_LAMBDA(auto g, auto l) {
        return values(g * formulas::sigmoid_cross_entropy_grad_target(l));
      },
      grad, logits);
}

void scale_unless_one(Extent extent, PerRow factor, Input x, Output out) {
  map_unless_one(
      extent, {out}, [] FASTVAE_LAMBDA(auto factor, auto x) { return values(factor * x); }, factor,
      x);
}

}  // namespace fastvae::FASTVAE_DEVICE
