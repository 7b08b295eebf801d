#include "kernels.h"
#include "loops.h"

namespace fastvae::cpu::CPU_CAPABILITY {

void binarize(Extent extent, Input probability, Input uniform, Output out, Sums invalid) {
  row_sum_and_map(
      extent, invalid, {out},
      [](auto p, auto u) FASTVAE_INLINE {
        return term_and_values(formulas::not_a_probability(p), formulas::binarize(p, u));
      },
      probability, uniform);
}

}  // namespace fastvae::cpu::CPU_CAPABILITY
