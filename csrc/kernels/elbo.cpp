// The negative ELBO of a batch, from the row sums of its two terms.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void elbo(Extent extent, Sums reconstruction, Sums kl, Input beta, bool mean, Sums loss,
          Sums total_reconstruction, Sums total_kl) {
  const auto samples = static_cast<double>(extent.K);
  const auto batch = mean ? static_cast<double>(extent.B) : 1;
  total(
      {loss, total_reconstruction, total_kl},
      [=, beta = scalar(beta)] FASTVAE_LAMBDA(double reconstruction, double kl) {
        reconstruction /= samples * batch;
        kl /= batch;
        return values(formulas::negative_elbo(reconstruction, kl, double(beta)), reconstruction,
                      kl);
      },
      Column{reconstruction, extent.K * extent.B}, Column{kl, extent.B});
}

}  // namespace fastvae::FASTVAE_DEVICE
