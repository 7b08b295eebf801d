#include "autograd.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/empty.h>

namespace fastvae::ops {

Tensor unreduce(const Tensor& grad, Reduction reduction, c10::SymIntArrayRef rows) {
  if (reduction == Reduction::none) return grad;
  Tensor per_row = grad;
  if (reduction == Reduction::mean) {
    c10::SymInt count = 1;
    for (const auto& size : rows) count = count * size;
    per_row = per_row.div(at::Scalar(count));
  }
  return per_row.expand_symint(rows);
}

Tensor beside_event(Tensor per_row, int64_t event_dims) {
  for (int64_t i = 0; i < event_dims; ++i) per_row = per_row.unsqueeze(-1);
  return per_row;
}

Tensor add_defined(const Tensor& a, const Tensor& b) {
  return a.defined() && b.defined() ? a + b : a.defined() ? a : b;
}

MaybeTensor unique_if_traced(const Tensor& input) {
  if (!at::isTensorSubclassLike(input)) return std::nullopt;
  return at::empty({0}, input.options());
}

int64_t reduction_code(const char* op, c10::string_view name) {
  return static_cast<int64_t>(parse_reduction(op, name));
}

bool writes_grad(bool wanted, const Tensor& logits, Reduction reduction) {
  return graph_wanted() && wanted && reduction != Reduction::none &&
         logits.scalar_type() != at::kHalf;
}

void keep_written(AutogradContext* ctx, variable_list written) {
  ctx->saved_data["written"] = std::move(written);
}

variable_list take_written(AutogradContext* ctx, const Tensor& factor) {
  const auto found = ctx->saved_data.find("written");
  if (found == ctx->saved_data.end()) return {};
  variable_list written = found->second.toTensorVector();
  ctx->saved_data.erase("written");
  for (Tensor& t : written) {
    if (!t.defined()) continue;
    if (at::isTensorSubclassLike(factor) || at::isTensorSubclassLike(t))
      t = as_input(t * factor, t);
    else if (!factor.is_cpu() || factor.item<double>() != 1)
      call<scale_grad>("fastvae::scale_grad", t, factor);
  }
  return written;
}

}  // namespace fastvae::ops
