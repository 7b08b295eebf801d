#include "kernels.h"
#include "loops.h"

namespace fastvae::cpu::CPU_CAPABILITY {

void reparameterize(Extent extent, Input mu, Input logvar, Input eps, Output z) {
  map(
      extent, {z},
      [](auto mu, auto logvar, auto eps) FASTVAE_INLINE {
        return values(formulas::reparameterize(mu, formulas::standard_deviation(logvar), eps));
      },
      mu, logvar, eps);
}

void reparameterize_backward(Extent extent, Input grad_z, Input logvar, Input eps, Output grad_mu,
                             Output grad_logvar) {
  map_folding(
      extent, {grad_mu, grad_logvar},
      [](auto g, auto logvar, auto eps) FASTVAE_INLINE {
        const auto sigma = formulas::standard_deviation(logvar);
        return values(g, g * formulas::reparameterize_grad_logvar(sigma, eps));
      },
      grad_z, logvar, eps);
}

}  // namespace fastvae::cpu::CPU_CAPABILITY
