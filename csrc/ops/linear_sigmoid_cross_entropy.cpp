// The derivatives of a layer with its loss; linear.cpp has the passes.
#include <ATen/ops/linear.h>

#include <algorithm>

#include "layer.h"
#include "likelihood.h"

namespace fastvae::ops {
namespace {

// Up to so many bytes of logits are kept for the backward pass: in the last-level cache they are
// read faster than computed again. Not in reduced precision, whose products may be in another.
constexpr int64_t kKeptBytes = int64_t{16} << 20;

bool keeps_logits(const Tensor& hidden, const Tensor& weight) {
  if (hidden.dim() == 0 || weight.dim() == 0) return false;  // an error that the operator names
  c10::SymInt bytes = weight.sym_size(0) * hidden.element_size();
  for (const auto& size : hidden.sym_sizes().slice(0, hidden.dim() - 1)) bytes = bytes * size;
  return hidden.element_size() >= 4 && bytes <= kKeptBytes;
}

struct LinearSigmoidCrossEntropy : Function<LinearSigmoidCrossEntropy> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& weight,
                               const MaybeTensor& bias, const Tensor& target, Reduction reduction,
                               bool with_grad, bool keep, bool check_target, Activation f) {
    const auto activation = static_cast<int64_t>(f);
    const std::array<bool, 3> wanted = {hidden.requires_grad(), weight.requires_grad(),
                                        bias.has_value() && bias->requires_grad()};
    Tensor rows, logits;
    std::array<Tensor, 3> grads;
    if (with_grad)
      std::tie(rows, grads[0], grads[1], grads[2]) = call<linear_sigmoid_cross_entropy_with_grad>(
          "fastvae::linear_sigmoid_cross_entropy_with_grad", hidden, weight, bias, target,
          reduction == Reduction::mean, wanted, check_target, activation);
    else
      std::tie(rows, logits) = call<linear_sigmoid_cross_entropy_forward>(
          "fastvae::linear_sigmoid_cross_entropy_forward", hidden, weight, bias, target, keep,
          check_target, activation);
    ctx->save_for_backward(
        {hidden, weight, bias.value_or(Tensor()), target, if_wanted(keep, logits)});
    if (with_grad)
      keep_written(ctx, {if_wanted(wanted[0], grads[0]), if_wanted(wanted[1], grads[1]),
                         if_wanted(wanted[2], grads[2])});
    ctx->saved_data["reduction"] = static_cast<int64_t>(reduction);
    ctx->saved_data["activation"] = activation;
    return {reduce(rows, reduction)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &hidden = saved[0], &weight = saved[1], &target = saved[3];
    const MaybeTensor bias = maybe(saved[2]);
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
    const int64_t activation = ctx->saved_data["activation"].toInt();
    const bool has_bias = bias.has_value();
    // An absent tensor has no index.
    const std::array<bool, 4> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        has_bias && ctx->needs_input_grad(2),
                                        ctx->needs_input_grad(has_bias ? 3 : 2)};
    const auto per_row = [&] {
      return unreduce(grads[0], reduction, hidden.sym_sizes().slice(0, hidden.dim() - 1));
    };
    std::array<Tensor, 4> g;
    if (graph_wanted()) {
      const auto f = static_cast<Activation>(activation);
      const Tensor input = activated(hidden, f);
      const c10::SymInt outputs = weight.sym_size(0);
      const Tensor flat_target = target.reshape_symint({target.sym_size(0), outputs});
      auto [grad_logits, grad_target] =
          differentiable_grads(Likelihood::sigmoid_cross_entropy, per_row(),
                               at::linear(input, weight, bias), flat_target, {true, wanted[3]});
      const Tensor flat = grad_logits.flatten(0, -2);
      g[0] = activation_grad(grad_logits.matmul(weight), input, f);
      g[1] = flat.t().mm(input.flatten(0, -2));
      g[2] = flat.sum(0);
      if (wanted[3]) g[3] = grad_target.view_symint(target.sym_sizes());
    } else {
      // Written only where the target wants nothing.
      const variable_list written = take_written(ctx, grads[0]);
      if (written.empty())
        std::tie(g[0], g[1], g[2], g[3]) = call<linear_sigmoid_cross_entropy_backward>(
            "fastvae::linear_sigmoid_cross_entropy_backward", per_row(), hidden, weight, bias,
            target, maybe(saved[4]), wanted, activation);
      else
        std::copy(written.begin(), written.end(), g.begin());
    }
    return {if_wanted(wanted[0], g[0]),
            if_wanted(wanted[1], g[1]),
            if_wanted(wanted[2], g[2]),
            if_wanted(wanted[3], g[3]),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

}  // namespace

Tensor linear_sigmoid_cross_entropy(const Tensor& hidden, const Tensor& weight,
                                    const MaybeTensor& bias, const Tensor& target,
                                    c10::string_view reduction, bool check_target,
                                    std::optional<c10::string_view> activation) {
  const Reduction parsed = parse_reduction("fastvae.linear_sigmoid_cross_entropy", reduction);
  const Activation f = parse_activation("fastvae.linear_sigmoid_cross_entropy", activation);
  const bool any = hidden.requires_grad() || weight.requires_grad() ||
                   (bias.has_value() && bias->requires_grad());
  const bool with_grad = writes_grad(any && !target.requires_grad(), hidden, parsed);
  const bool keep = graph_wanted() && !with_grad && (any || target.requires_grad()) &&
                    keeps_logits(hidden, weight);
  return LinearSigmoidCrossEntropy::apply(hidden, weight, bias, target, parsed, with_grad, keep,
                                          check_target, f)[0];
}

}  // namespace fastvae::ops
