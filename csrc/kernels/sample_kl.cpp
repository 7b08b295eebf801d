// sample_kl and its derivatives: a sample and the divergence in one pass.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void sample_kl(Extent extent, Input mu, Input logvar, Normal eps, Output z, Sums kl) {
  row_sum_and_map(
      extent, kl, {z},
      [] FASTVAE_LAMBDA(auto mu, auto logvar, auto eps) {
        const auto sigma = formulas::standard_deviation(logvar);
        return term_and_values(formulas::gaussian_kl(mu, formulas::squared(sigma)),
                               formulas::reparameterize(mu, sigma.value, eps));
      },
      mu, logvar, eps);
}

void sample_kl_backward(Extent extent, Input grad_z, PerRow grad_kl, Input mu, Input logvar,
                        Normal eps, Output grad_mu, Output grad_logvar) {
  map(
      extent, {grad_mu, grad_logvar},
      [] FASTVAE_LAMBDA(auto gz, auto gkl, auto mu, auto logvar, auto eps) {
        const auto sigma = formulas::standard_deviation(logvar);
        return values(gz + gkl * formulas::gaussian_kl_grad_mu(mu),
                      gz * formulas::reparameterize_grad_logvar(sigma.value, eps) +
                          gkl * formulas::gaussian_kl_grad_logvar(formulas::squared(sigma)));
      },
      grad_z, grad_kl, mu, logvar, eps);
}

}  // namespace fastvae::FASTVAE_DEVICE
