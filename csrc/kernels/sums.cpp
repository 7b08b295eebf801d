// What is done with the results of an operator: sums, in an order that depends on the sizes alone,
// and the multiplication by a factor.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void sum_rows(Extent extent, Input x, Sums out) {
  row_sum(extent, out, [] FASTVAE_LAMBDA(auto x) { return x; }, x);
}

void sum_columns(Extent extent, Input x, Sums out) {
  column_sum(extent, {out}, [] FASTVAE_LAMBDA(auto x) { return values(x); }, x);
}

void scale_unless_one(Extent extent, PerRow factor, Input x, Output out) {
  map_unless_one(
      extent, {out}, [] FASTVAE_LAMBDA(auto factor, auto x) { return values(factor * x); }, factor,
      x);
}

}  // namespace fastvae::FASTVAE_DEVICE
