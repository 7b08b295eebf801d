#include "kernels.h"
#include "loops.h"

namespace fastvae::cpu::CPU_CAPABILITY {

void gaussian_nll(Extent extent, Input mean, Input target, Input logvar, const Input* precision,
                  Sums out) {
  if (precision) {
    row_sum(
        extent, out,
        [](auto mean, auto x, auto logvar, auto precision)
            FASTVAE_INLINE { return formulas::gaussian_nll(mean, x, logvar, precision); },
        mean, target, logvar, *precision);
    return;
  }
  row_sum(
      extent, out,
      [](auto mean, auto x, auto logvar)
          FASTVAE_INLINE { return formulas::gaussian_nll(mean, x, logvar, math::exp(-logvar)); },
      mean, target, logvar);
}

void gaussian_nll_backward(Extent extent, Input grad, Input mean, Input target, Input logvar,
                           const Input* precision, Output grad_mean, Output grad_logvar) {
  if (precision) {
    map(
        extent, {grad_mean},
        [](auto g, auto mean, auto x, auto precision) FASTVAE_INLINE {
          return values(g * formulas::gaussian_nll_grad_mean(mean, x, precision));
        },
        grad, mean, target, *precision);
    return;
  }
  map(
      extent, {grad_mean, grad_logvar},
      [](auto g, auto mean, auto x, auto logvar) FASTVAE_INLINE {
        const auto precision = math::exp(-logvar);
        return values(g * formulas::gaussian_nll_grad_mean(mean, x, precision),
                      g * formulas::gaussian_nll_grad_logvar(mean, x, precision));
      },
      grad, mean, target, logvar);
}

void gaussian_nll_backward_target(Extent extent, Input grad, Input mean, Input target, Input logvar,
                                  const Input* precision, Output grad_target) {
  // d/dtarget = -d/dmean
  if (precision) {
    map_folding(
        extent, {grad_target},
        [](auto g, auto mean, auto x, auto precision) FASTVAE_INLINE {
          return values(-g * formulas::gaussian_nll_grad_mean(mean, x, precision));
        },
        grad, mean, target, *precision);
    return;
  }
  map_folding(
      extent, {grad_target},
      [](auto g, auto mean, auto x, auto logvar) FASTVAE_INLINE {
        return values(-g * formulas::gaussian_nll_grad_mean(mean, x, math::exp(-logvar)));
      },
      grad, mean, target, logvar);
}

}  // namespace fastvae::cpu::CPU_CAPABILITY
