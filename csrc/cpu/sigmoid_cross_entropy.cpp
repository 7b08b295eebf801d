#include "kernels.h"
#include "loops.h"

namespace fastvae::cpu::CPU_CAPABILITY {

void sigmoid_cross_entropy(Extent extent, Input logits, Input target, Sums out) {
  row_sum<Sum::logs>(
      extent, out,
      [](auto l, auto x)
          FASTVAE_INLINE { return formulas::sigmoid_cross_entropy(l, x, formulas::odds(l)); },
      logits, target);
}

void sigmoid_cross_entropy_with_grad(Extent extent, Input logits, Input target, double scale,
                                     Sums out, Output grad_logits) {
  row_sum_and_map<Sum::logs>(
      extent, out, {grad_logits},
      [scale](auto l, auto x) FASTVAE_INLINE {
        using T = decltype(l);
        const T odds = formulas::odds(l);
        return term_and_values(
            formulas::sigmoid_cross_entropy(l, x, odds),
            static_cast<T>(scale) * formulas::sigmoid_cross_entropy_grad_logits(l, x, odds));
      },
      logits, target);
}

void sigmoid_cross_entropy_backward(Extent extent, Input grad, Input logits, Input target,
                                    Output grad_logits) {
  map(
      extent, {grad_logits},
      [](auto g, auto l, auto x) FASTVAE_INLINE {
        return values(g * formulas::sigmoid_cross_entropy_grad_logits(l, x, formulas::odds(l)));
      },
      grad, logits, target);
}

void sigmoid_cross_entropy_backward_target(Extent extent, Input grad, Input logits,
                                           Output grad_target) {
  map_folding(
      extent, {grad_target},
      [](auto g, auto l)
          FASTVAE_INLINE { return values(g * formulas::sigmoid_cross_entropy_grad_target(l)); },
      grad, logits);
}

}  // namespace fastvae::cpu::CPU_CAPABILITY
