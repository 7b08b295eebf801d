#include "layer.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>

#include "../cpu/dispatch.h"
#include "../rows.h"
#include "results.h"

namespace fastvae::ops {

constexpr int64_t kManyRows = 1024;  // on an H200

at::ScalarType product_dtype(const Tensor& beside, at::ScalarType dtype) {
  const bool is_reduced = dtype == at::kHalf || dtype == at::kBFloat16;
  return beside.is_cpu() && is_reduced && !cpu::multiplies(dtype) ? at::kFloat : dtype;
}

Tensor operand_rows(c10::SymInt rows, c10::SymInt width, const at::TensorOptions& options,
                    bool padded) {
  const int64_t unit = 16 / static_cast<int64_t>(options.dtype().itemsize());
  if (!padded || width % unit == 0) return empty({rows, width}, options);
  return empty({rows, (width + unit - 1) / unit * unit}, options).narrow_symint(1, 0, width);
}

Tensor whole_rows(const Tensor& rows) {
  return rows.as_strided({rows.size(0), rows.stride(0)}, {rows.stride(0), 1});
}

void layer(const Tensor& a, const Tensor& weight, const MaybeTensor& bias, Activation f,
           Tensor& out) {
  // Of many rows cuBLAS adds a bias while it multiplies; of few it is slow to. That it would apply
  // a ReLU too is of no use: some of its kernels make 0 of NaN.
  if (bias.has_value() && f == Activation::none && out.is_cuda() && out.size(0) >= kManyRows &&
      bias->size(0) == out.size(1)) {
    at::addmm_out(out, *bias, a, weight.t());
    return;
  }
  at::mm_out(out, a, weight.t());
  if ((!bias.has_value() && f == Activation::none) || out.numel() == 0) return;
  const Tensor whole = whole_rows(out);
  Tensor shared;
  if (bias.has_value()) {
    shared = *bias;
    if (whole.size(1) != bias->size(0)) {
      shared = at::zeros({whole.size(1)}, bias->options());
      shared.narrow(0, 0, bias->size(0)).copy_(*bias);
    }
  }
  const KernelsFor kernels(out);
  Rows rows(whole, 1, RowOrder::any, {whole}, {{whole, true}},
            shared.defined() ? at::ArrayRef<Tensor>(shared) : at::ArrayRef<Tensor>());
  const Shared input = shared.defined() ? rows.shared(0) : Shared();
  kernels->activate(rows.extent, rows.input(0), shared.defined() ? &input : nullptr, f,
                    rows.output(0));
}

Tensor layer_backward(const Tensor& grad, const Tensor& activated, Activation f, bool wants_bias) {
  const bool none = f == Activation::none;
  if (!wants_bias && (none || grad.numel() == 0)) return {};
  if (grad.numel() == 0) return at::zeros({grad.size(1)}, grad.options());
  // The gradient of the last layer is the caller's; and what a hook has packed and unpacked may lie
  // in another way.
  const bool own = !none && activated.stride(0) == grad.stride(0);
  const Tensor g = own ? whole_rows(grad) : grad;
  const Tensor y = none ? g : own ? whole_rows(activated) : activated;
  Tensor sums;
  if (wants_bias) sums = at::empty({g.size(1)}, grad.options().dtype(sum_dtype({grad})));
  const KernelsFor kernels(grad);
  Rows rows(g, 1, RowOrder::any, {g, y}, {{g, !none}});
  if (none)
    kernels->sum_columns(rows.extent, rows.input(0), sums_of(sums));
  else
    kernels->activate_backward(rows.extent, rows.input(0), rows.input(1), f, rows.output(0),
                               wants_bias ? sums_of(sums) : Sums());
  rows.finish();
  return wants_bias ? sums.narrow(0, 0, grad.size(1)) : Tensor();
}

void weight_grad(const Tensor& grad, const Tensor& a, Tensor& out) {
  if (out.scalar_type() == grad.scalar_type())
    at::mm_out(out, grad.t(), a);
  else if (out.is_cuda() && out.scalar_type() == at::kFloat && grad.element_size() == 2)
    at::mm_out(out, grad.t(), a, out.scalar_type());
  else
    out.copy_(grad.t().mm(a));
}

Tensor activated(const Tensor& x, Activation f) {
  if (f == Activation::none) return x;
  return f == Activation::relu ? x.relu() : x.tanh();
}

Tensor activation_grad(const Tensor& grad, const Tensor& activated, Activation f) {
  if (f == Activation::none) return grad;
  return f == Activation::relu ? at::threshold_backward(grad, activated, 0)
                               : at::tanh_backward(grad, activated);
}

}  // namespace fastvae::ops
