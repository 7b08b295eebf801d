// reparameterize and its derivatives.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void reparameterize(Extent extent, Input mu, Input logvar, Normal eps, Output z) {
  map(
      extent, {z},
      [] FASTVAE_LAMBDA(auto mu, auto logvar, auto eps) {
        return values(
            formulas::reparameterize(mu, formulas::standard_deviation(logvar).value, eps));
      },
      mu, logvar, eps);
}

void reparameterize_backward(Extent extent, Input grad_z, Input logvar, Normal eps, Output grad_mu,
                             Output grad_logvar) {
  map_folding(
      extent, {grad_mu, grad_logvar},
      [] FASTVAE_LAMBDA(auto g, auto logvar, auto eps) {
        const auto sigma = formulas::standard_deviation(logvar).value;
        return values(g, g * formulas::reparameterize_grad_logvar(sigma, eps));
      },
      grad_z, logvar, eps);
}

}  // namespace fastvae::FASTVAE_DEVICE
