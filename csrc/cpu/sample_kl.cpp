#include "kernels.h"
#include "loops.h"

namespace fastvae::cpu::CPU_CAPABILITY {

void sample_kl(Extent extent, Input mu, Input logvar, Input eps, Output z, Sums kl) {
  row_sum_and_map(
      extent, kl, {z},
      [](auto mu, auto logvar, auto eps) FASTVAE_INLINE {
        const auto sigma = formulas::standard_deviation(logvar);
        return term_and_values(formulas::gaussian_kl(mu, logvar, sigma * sigma),
                               formulas::reparameterize(mu, sigma, eps));
      },
      mu, logvar, eps);
}

void sample_kl_backward(Extent extent, Input grad_z, Input grad_kl, Input mu, Input logvar,
                        Input eps, Output grad_mu, Output grad_logvar) {
  map(
      extent, {grad_mu, grad_logvar},
      [](auto gz, auto gkl, auto mu, auto logvar, auto eps) FASTVAE_INLINE {
        const auto sigma = formulas::standard_deviation(logvar);
        return values(gz + gkl * formulas::gaussian_kl_grad_mu(mu),
                      gz * formulas::reparameterize_grad_logvar(sigma, eps) +
                          gkl * formulas::gaussian_kl_grad_logvar(sigma * sigma));
      },
      grad_z, grad_kl, mu, logvar, eps);
}

}  // namespace fastvae::cpu::CPU_CAPABILITY
