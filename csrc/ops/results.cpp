#include "results.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/sum.h>

#include "../memory.h"

namespace fastvae::ops {

Tensor empty(c10::SymIntArrayRef size, const at::TensorOptions& options) {
  if (options.device().is_cpu()) {
    const auto known = C10_AS_INTARRAYREF_SLOW(size);
    if (c10::multiply_integers(known) * options.dtype().itemsize() >= kLargeResult)
      return at::detail::empty_generic(known, recycling_allocator(),
                                       c10::DispatchKeySet(c10::DispatchKey::CPU),
                                       c10::typeMetaToScalarType(options.dtype()), std::nullopt);
  }
  return at::empty_symint(size, options);
}

Tensor grad_like(const Tensor& input, bool wanted) {
  if (!wanted) return at::empty({0}, input.options());
  if (!input.is_cpu() || input.nbytes() < kLargeResult) return at::empty_like(input);
  const Tensor layout = at::empty_like(input, input.options().device(at::kMeta));
  return at::detail::empty_strided_generic(layout.sizes(), layout.strides(), recycling_allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::CPU),
                                           layout.scalar_type());
}

Tensor row_major_grad(const Tensor& input, at::ScalarType dtype, bool wanted) {
  return wanted ? empty(input.sym_sizes(), like(input, dtype)) : at::empty({0}, like(input, dtype));
}

bool is_done(const Tensor& elements, const Tensor& grad_target, bool target_wanted) {
  if (elements.is_meta()) return true;
  if (elements.numel() > 0) return false;
  if (target_wanted) grad_target.zero_();
  return true;
}

double host_value(const MaybeTensor& scalar, double value) {
  return scalar.has_value() && scalar->is_cpu() ? scalar->item<double>() : value;
}

Reduction parse_reduction(const char* op, c10::string_view name) {
  if (name == "none") return Reduction::none;
  if (name == "mean") return Reduction::mean;
  TORCH_CHECK_VALUE(name == "sum", op, ": reduction must be 'none', 'mean' or 'sum', got '", name,
                    "'");
  return Reduction::sum;
}

Tensor reduce(const Tensor& rows, Reduction reduction) {
  if (reduction == Reduction::none) return rows;
  return reduction == Reduction::mean ? rows.mean() : rows.sum();
}

Tensor target_values(const Tensor& target, at::ScalarType dtype) {
  if (target.scalar_type() == at::kByte) return target.to(dtype).div(255);
  return target.to(dtype);
}

at::ScalarType sum_dtype(std::initializer_list<MaybeTensor> inputs) {
  for (const MaybeTensor& input : inputs)
    if (input.has_value() && input->defined() && input->scalar_type() == at::kDouble)
      return at::kDouble;
  return at::kFloat;
}

}  // namespace fastvae::ops
