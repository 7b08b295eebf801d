// gaussian_kl from the standard normal or from a prior, and its derivatives.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void gaussian_kl(Extent extent, Input mu, Input logvar, Sums kl) {
  row_sum(
      extent, kl,
      [] FASTVAE_LAMBDA(auto mu, auto logvar) {
        return formulas::gaussian_kl(mu, math::exponential_of(logvar));
      },
      mu, logvar);
}

void gaussian_kl_backward(Extent extent, PerRow grad, Input mu, Input logvar, Output grad_mu,
                          Output grad_logvar) {
  map(
      extent, {grad_mu, grad_logvar},
      [] FASTVAE_LAMBDA(auto g, auto mu, auto logvar) {
        return values(g * formulas::gaussian_kl_grad_mu(mu),
                      g * formulas::gaussian_kl_grad_logvar(math::exponential_of(logvar)));
      },
      grad, mu, logvar);
}

void gaussian_kl_prior(Extent extent, Input mu, Input logvar, Shared prior_mu, Shared prior_logvar,
                       Sums kl) {
  row_sum(
      extent, kl,
      [] FASTVAE_LAMBDA(auto mu, auto logvar, auto prior_mu, auto prior_logvar) {
        return formulas::gaussian_kl(formulas::prior_terms(mu, logvar, prior_mu, prior_logvar));
      },
      mu, logvar, prior_mu, prior_logvar);
}

namespace {

struct PriorGradients {
  template <class T>
  FASTVAE_LAMBDA auto operator()(T g, T mu, T logvar, T prior_mu, T prior_logvar) const {
    const auto terms = formulas::prior_terms(mu, logvar, prior_mu, prior_logvar);
    const T grad_mu = g * terms.whitened;
    return values(grad_mu, g * formulas::gaussian_kl_grad_logvar(terms.ratio), -grad_mu,
                  g * formulas::gaussian_kl_grad_prior_logvar(terms));
  }
};

}  // namespace

void gaussian_kl_prior_backward(Extent extent, PerRow grad, Input mu, Input logvar, Shared prior_mu,
                                Shared prior_logvar, Output grad_mu, Output grad_logvar,
                                Output grad_prior_mu, Output grad_prior_logvar) {
  map(extent, {grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar}, PriorGradients(), grad, mu,
      logvar, prior_mu, prior_logvar);
}

void gaussian_kl_prior_backward_columns(Extent extent, PerRow grad, Input mu, Input logvar,
                                        Shared prior_mu, Shared prior_logvar, Output grad_mu,
                                        Output grad_logvar, Sums grad_prior_mu,
                                        Sums grad_prior_logvar) {
  map_and_column_sum(extent, {grad_mu, grad_logvar}, {grad_prior_mu, grad_prior_logvar},
                     PriorGradients(), grad, mu, logvar, prior_mu, prior_logvar);
}

}  // namespace fastvae::FASTVAE_DEVICE
