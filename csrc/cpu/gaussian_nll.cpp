#include "kernels.h"
#include "loops.h"

namespace fastvae::cpu::CPU_CAPABILITY {

void gaussian_nll(Extent extent, Input mean, Input target, Input logvar, const Input* inverse,
                  Sums out) {
  if (inverse) {
    row_sum(
        extent, out,
        [logvar = scalar(logvar), inverse = scalar(*inverse)](auto mean, auto x) FASTVAE_INLINE {
          using T = decltype(mean);
          return formulas::gaussian_nll(mean, x, T(logvar), T(inverse));
        },
        mean, target);
    return;
  }
  row_sum(
      extent, out,
      [](auto mean, auto x, auto logvar) FASTVAE_INLINE {
        return formulas::gaussian_nll(mean, x, logvar, formulas::inverse_deviation(logvar));
      },
      mean, target, logvar);
}

void gaussian_nll_backward(Extent extent, Input grad, Input mean, Input target, Input logvar,
                           const Input* inverse, Output grad_mean, Output grad_logvar) {
  if (inverse) {
    map(
        extent, {grad_mean},
        [inverse = scalar(*inverse)](auto g, auto mean, auto x) FASTVAE_INLINE {
          return values(g * formulas::gaussian_nll_grad_mean(mean, x, decltype(x)(inverse)));
        },
        grad, mean, target);
    return;
  }
  map(
      extent, {grad_mean, grad_logvar},
      [](auto g, auto mean, auto x, auto logvar) FASTVAE_INLINE {
        const auto inverse = formulas::inverse_deviation(logvar);
        return values(
            g * formulas::gaussian_nll_grad_mean(mean, x, inverse),
            decltype(g)(0.5) * g * formulas::gaussian_nll_grad_log_sigma(mean, x, inverse));
      },
      grad, mean, target, logvar);
}

void gaussian_nll_backward_target(Extent extent, Input grad, Input mean, Input target, Input logvar,
                                  const Input* inverse, Output grad_target) {
  // d/dtarget = -d/dmean
  if (inverse) {
    map_folding(
        extent, {grad_target},
        [inverse = scalar(*inverse)](auto g, auto mean, auto x) FASTVAE_INLINE {
          return values(-g * formulas::gaussian_nll_grad_mean(mean, x, decltype(x)(inverse)));
        },
        grad, mean, target);
    return;
  }
  map_folding(
      extent, {grad_target},
      [](auto g, auto mean, auto x, auto logvar) FASTVAE_INLINE {
        return values(
            -g * formulas::gaussian_nll_grad_mean(mean, x, formulas::inverse_deviation(logvar)));
      },
      grad, mean, target, logvar);
}

void gaussian_nll_grad_log_sigma(Extent extent, Input mean, Input target, Input inverse, Sums out) {
  row_sum(
      extent, out,
      [inverse = scalar(inverse)](auto mean, auto x) FASTVAE_INLINE {
        return formulas::gaussian_nll_grad_log_sigma(mean, x, decltype(x)(inverse));
      },
      mean, target);
}

}  // namespace fastvae::cpu::CPU_CAPABILITY
