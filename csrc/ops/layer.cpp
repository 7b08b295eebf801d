#include "layer.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>

#include "../cpu/dispatch.h"
#include "../rows.h"

namespace fastvae::ops {

constexpr int64_t kManyRows = 1024;  // on an H200

at::ScalarType product_dtype(const Tensor& beside, at::ScalarType dtype) {
  const bool is_reduced = dtype == at::kHalf || dtype == at::kBFloat16;
  return beside.is_cpu() && is_reduced && !cpu::multiplies(dtype) ? at::kFloat : dtype;
}

void layer(const Tensor& a, const Tensor& weight, const MaybeTensor& bias, Activation f,
           Tensor& out) {
  // Of many rows cuBLAS adds a bias while it multiplies; of few it is slow to. That it would apply
  // a ReLU too is of no use: some of its kernels make 0 of NaN.
  if (bias.has_value() && f == Activation::none && out.is_cuda() && out.size(0) >= kManyRows) {
    at::addmm_out(out, *bias, a, weight.t());
    return;
  }
  at::mm_out(out, a, weight.t());
  if ((!bias.has_value() && f == Activation::none) || out.numel() == 0) return;
  const KernelsFor kernels(out);
  Rows rows(out, 1, RowOrder::any, {out}, {{out, true}},
            bias.has_value() ? at::ArrayRef<Tensor>(*bias) : at::ArrayRef<Tensor>());
  const Shared shared = bias.has_value() ? rows.shared(0) : Shared();
  kernels->activate(rows.extent, rows.input(0), bias.has_value() ? &shared : nullptr, f,
                    rows.output(0));
  rows.finish();
}

void layer_backward(Tensor& grad, const Tensor& activated, Activation f, const Tensor& grad_bias) {
  const bool sums = grad_bias.defined();
  if (!sums && f == Activation::none) return;
  const KernelsFor kernels(grad);
  Rows rows(grad, 1, RowOrder::any, {grad, f == Activation::none ? grad : activated},
            {{grad, f != Activation::none}});
  if (f == Activation::none)
    kernels->sum_columns(rows.extent, rows.input(0), sums_of(grad_bias));
  else
    kernels->activate_backward(rows.extent, rows.input(0), rows.input(1), f, rows.output(0),
                               sums ? sums_of(grad_bias) : Sums());
  rows.finish();
}

void weight_grad(const Tensor& grad, const Tensor& a, Tensor& out) {
  if (out.scalar_type() == grad.scalar_type())
    at::mm_out(out, grad.t(), a);
  else if (out.is_cuda())
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
