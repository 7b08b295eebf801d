// binarize: Bernoulli draws.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void binarize(Extent extent, Gathered probability, Uniform uniform, Output out, Sums invalid) {
  row_sum_and_map(
      extent, invalid, {out},
      [] FASTVAE_LAMBDA(auto p, auto u) {
        return term_and_values(formulas::not_a_probability(p), formulas::binarize(p, u));
      },
      probability, uniform);
}

}  // namespace fastvae::FASTVAE_DEVICE
