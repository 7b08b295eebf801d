#include <ATen/ops/sigmoid.h>
#include <ATen/ops/where.h>

#include "../rows.h"
#include "autograd.h"
#include "results.h"

namespace fastvae::ops {

Tensor sigmoid_cross_entropy_rows(const Tensor& logits, const Tensor& target, bool has_samples,
                                  double scale, const Tensor& grad_logits) {
  Tensor out = empty(logits.sym_sizes().slice(0, has_samples ? 2 : 1),
                     like(logits, sum_dtype({logits, target})));
  if (out.is_meta() || out.numel() == 0) return out;
  const KernelsFor kernels(logits);
  const int64_t event = target.dim() - 1;
  if (grad_logits.defined()) {
    Rows rows(logits, event, RowOrder::any, {logits, target}, {{grad_logits, true}});
    kernels->sigmoid_cross_entropy_with_grad(rows.extent, rows.input(0), rows.target(1), scale,
                                             sums_of(out), rows.output(0));
    rows.finish();
  } else {
    const Rows rows(logits, event, RowOrder::any, {logits, target});
    kernels->sigmoid_cross_entropy(rows.extent, rows.input(0), rows.target(1), sums_of(out));
  }
  return out;
}

namespace {

// True if there is a K.
bool check(const Tensor& logits, const Tensor& target, bool check_target) {
  const char* op = "fastvae.sigmoid_cross_entropy";
  const bool has_samples = check_samples(op, "logits", logits, target);
  if (check_target) check_probabilities(op, target);
  return has_samples;
}

}  // namespace

Tensor sigmoid_cross_entropy_forward(const Tensor& logits, const Tensor& target,
                                     bool check_target) {
  const bool has_samples = check(logits, target, check_target);
  return sigmoid_cross_entropy_rows(logits, target, has_samples, 1, {});
}

std::tuple<Tensor, Tensor> sigmoid_cross_entropy_with_grad(const Tensor& logits,
                                                           const Tensor& target, bool mean,
                                                           bool check_target) {
  const bool has_samples = check(logits, target, check_target);
  Tensor grad_logits = grad_like(logits, true);
  double scale = 1;
  if (mean && !logits.is_meta())
    scale /= static_cast<double>(target.size(0) * (has_samples ? logits.size(0) : 1));
  const Tensor rows = sigmoid_cross_entropy_rows(logits, target, has_samples, scale, grad_logits);
  return {rows, grad_logits};
}

void scale_grad(const Tensor& grad, const Tensor& factor) {
  if (grad.is_meta() || grad.numel() == 0) return;
  TORCH_CHECK_VALUE(grad.is_non_overlapping_and_dense(),
                    "fastvae::scale_grad: a gradient must be dense, got strides ", grad.strides(),
                    " of shape ", grad.sizes());
  const Rows rows(grad, grad.dim(), RowOrder::any, {grad}, {{grad, true}});
  KernelsFor(grad)->scale_unless_one(rows.extent, PerRow{scalar_input(factor)}, rows.input(0),
                                     rows.output(0));
}

std::tuple<Tensor, Tensor> sigmoid_cross_entropy_backward(const Tensor& grad, const Tensor& logits,
                                                          const Tensor& target,
                                                          std::array<bool, 2> mask) {
  Tensor grad_logits = grad_like(logits, mask[0]);
  Tensor grad_target = grad_like(target, mask[1]);
  if (is_done(logits, grad_target, mask[1])) return {grad_logits, grad_target};
  const KernelsFor kernels(logits);
  const int64_t event = target.dim() - 1;

  if (mask[0]) {
    Rows rows(logits, event, RowOrder::any, {logits, target}, {{grad_logits, true}});
    kernels->sigmoid_cross_entropy_backward(rows.extent, rows.upstream(grad), rows.input(0),
                                            rows.target(1), rows.output(0));
    rows.finish();
  }
  if (mask[1]) {
    Rows rows(logits, event, RowOrder::any, {logits}, {{grad_target, true}});
    kernels->sigmoid_cross_entropy_backward_target(rows.extent, rows.upstream(grad), rows.input(0),
                                                   rows.output(0));
    rows.finish();
  }
  return {grad_logits, grad_target};
}

std::pair<Tensor, Tensor> sigmoid_cross_entropy_grads(const Tensor& grad, const Tensor& logits,
                                                      const Tensor& target) {
  const auto dtype = grad.scalar_type();
  const Tensor g = beside_event(grad, target.dim() - 1);
  const Tensor l = logits.to(dtype), x = target_values(target, dtype);
  // sigmoid(l) - x without cancellation where x is 0 or 1, as formulas.h has it; and so are its
  // derivatives, all of which are polynomials of the unlikelier outcome's probability q.
  const Tensor below = l < 0;
  const Tensor q = at::where(below, l, -l).sigmoid();
  return {g * at::where(below, q - x, (1 - x) - q), fold(-(g * l), logits.dim() > target.dim())};
}

namespace {

struct SigmoidCrossEntropy : Function<SigmoidCrossEntropy> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& target,
                               Reduction reduction, bool with_grad, bool check_target) {
    Tensor rows, grad_logits;
    if (with_grad)
      std::tie(rows, grad_logits) =
          call<sigmoid_cross_entropy_with_grad>("fastvae::sigmoid_cross_entropy_with_grad", logits,
                                                target, reduction == Reduction::mean, check_target);
    else
      rows = call<sigmoid_cross_entropy_forward>("fastvae::sigmoid_cross_entropy_forward", logits,
                                                 target, check_target);
    ctx->save_for_backward({logits, target});
    if (with_grad) keep_written(ctx, {grad_logits});
    ctx->saved_data["reduction"] = static_cast<int64_t>(reduction);
    return {reduce(rows, reduction)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &logits = saved[0], &target = saved[1];
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
    const auto per_row = [&] {
      return unreduce(grads[0], reduction,
                      logits.sym_sizes().slice(0, 1 + logits.dim() - target.dim()));
    };
    const std::array<bool, 2> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    Tensor grad_logits, grad_target;
    if (graph_wanted()) {
      std::tie(grad_logits, grad_target) = sigmoid_cross_entropy_grads(per_row(), logits, target);
      grad_logits = as_input(grad_logits, logits);
      if (wanted[1]) grad_target = as_input(grad_target, target);
    } else {
      std::tie(grad_logits, grad_target) =
          sigmoid_cross_entropy_kernel_grads(ctx, per_row, grads[0], logits, target, wanted);
    }
    return {if_wanted(wanted[0], grad_logits), if_wanted(wanted[1], grad_target), Tensor(),
            Tensor(), Tensor()};
  }
};

}  // namespace

Tensor sigmoid_cross_entropy(const Tensor& logits, const Tensor& target, c10::string_view reduction,
                             bool check_target) {
  const Reduction parsed = parse_reduction("fastvae.sigmoid_cross_entropy", reduction);
  return SigmoidCrossEntropy::apply(
      logits, target, parsed, writes_grad(logits.requires_grad(), logits, parsed), check_target)[0];
}

}  // namespace fastvae::ops
