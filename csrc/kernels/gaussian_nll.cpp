// gaussian_nll and its derivatives, with one sigma for all elements or a log variance for each.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void gaussian_nll(Extent extent, Input mean, Target target, Shared logvar, const Input* inverse,
                  Sums out) {
  if (inverse) {
    row_sum(extent, out,
            with_numbers(
                [] FASTVAE_LAMBDA(auto mean, auto x, auto logvar, auto inverse) {
                  return formulas::gaussian_nll(mean, x, logvar, inverse);
                },
                logvar, *inverse),
            mean, target);
    return;
  }
  row_sum(
      extent, out,
      [] FASTVAE_LAMBDA(auto mean, auto x, auto logvar) {
        return formulas::gaussian_nll(mean, x, logvar, formulas::inverse_deviation(logvar));
      },
      mean, target, logvar);
}

namespace {

struct GradMeanAndLogvar {
  template <class T>
  FASTVAE_LAMBDA auto operator()(T g, T mean, T x, T logvar) const {
    const T inverse = formulas::inverse_deviation(logvar);
    return values(g * formulas::gaussian_nll_grad_mean(mean, x, inverse),
                  T(0.5) * g * formulas::gaussian_nll_grad_log_sigma(mean, x, inverse));
  }
};

}  // namespace

void gaussian_nll_backward(Extent extent, PerRow grad, Input mean, Target target, Shared logvar,
                           const Input* inverse, Output grad_mean, Output grad_logvar) {
  if (inverse) {
    map(extent, {grad_mean},
        with_numbers(
            [] FASTVAE_LAMBDA(auto g, auto mean, auto x, auto inverse) {
              return values(g * formulas::gaussian_nll_grad_mean(mean, x, inverse));
            },
            *inverse),
        grad, mean, target);
    return;
  }
  map(extent, {grad_mean, grad_logvar}, GradMeanAndLogvar(), grad, mean, target, logvar);
}

void gaussian_nll_backward_columns(Extent extent, PerRow grad, Input mean, Target target,
                                   Shared logvar, Output grad_mean, Sums grad_logvar) {
  map_and_column_sum(extent, {grad_mean}, {grad_logvar}, GradMeanAndLogvar(), grad, mean, target,
                     logvar);
}

void gaussian_nll_grad_logvar_rows(Extent extent, PerRow grad, Input mean, Target target,
                                   PerRow logvar, Sums grad_logvar) {
  row_sum(
      extent, grad_logvar,
      [] FASTVAE_LAMBDA(auto g, auto mean, auto x, auto logvar) {
        return GradMeanAndLogvar()(g, mean, x, logvar).value[1];
      },
      grad, mean, target, logvar);
}

void gaussian_nll_backward_target(Extent extent, PerRow grad, Input mean, Target target,
                                  Shared logvar, const Input* inverse, Output grad_target) {
  // d/dtarget = -d/dmean
  if (inverse) {
    map_folding(extent, {grad_target},
                with_numbers(
                    [] FASTVAE_LAMBDA(auto g, auto mean, auto x, auto inverse) {
                      return values(-g * formulas::gaussian_nll_grad_mean(mean, x, inverse));
                    },
                    *inverse),
                grad, mean, target);
    return;
  }
  map_folding(
      extent, {grad_target},
      [] FASTVAE_LAMBDA(auto g, auto mean, auto x, auto logvar) {
        return values(
            -g * formulas::gaussian_nll_grad_mean(mean, x, formulas::inverse_deviation(logvar)));
      },
      grad, mean, target, logvar);
}

void gaussian_nll_grad_log_sigma(Extent extent, Input mean, Target target, Input inverse,
                                 Sums out) {
  row_sum(extent, out,
          with_numbers(
              [] FASTVAE_LAMBDA(auto mean, auto x, auto inverse) {
                return formulas::gaussian_nll_grad_log_sigma(mean, x, inverse);
              },
              inverse),
          mean, target);
}

}  // namespace fastvae::FASTVAE_DEVICE
