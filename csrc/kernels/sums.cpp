// Sums of what an operator has made, in an order that the sizes alone decide.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void sum_rows(Extent extent, Input x, Sums out) {
  row_sum(extent, out, [] FASTVAE_LAMBDA(auto x) { return x; }, x);
}

void sum_columns(Extent extent, Input x, Sums out) {
  column_sum(extent, {out}, [] FASTVAE_LAMBDA(auto x) { return values(x); }, x);
}

}  // namespace fastvae::FASTVAE_DEVICE
