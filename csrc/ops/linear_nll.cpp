// The derivatives of last layers together with their loss; linear.cpp has the passes.
#include <ATen/ops/linear.h>

#include <algorithm>

#include "layer.h"
#include "linear.h"
#include "results.h"

namespace fastvae::ops {
namespace {

// Up to so many bytes of logits are kept for the backward pass: in the last-level cache they are
// read faster than computed again. Not in reduced precision, whose products may be in another.
constexpr int64_t kKeptBytes = int64_t{16} << 20;

bool keeps_logits(const Tensor& hidden, const Tensor& weight, const MaybeTensor& second_weight) {
  if (second_weight.has_value()) return false;
  if (hidden.dim() == 0 || weight.dim() == 0) return false;  // an error that the operator names
  c10::SymInt bytes = weight.sym_size(0) * hidden.element_size();
  for (const auto& size : hidden.sym_sizes().slice(0, hidden.dim() - 1)) bytes = bytes * size;
  return hidden.element_size() >= 4 && bytes <= kKeptBytes;
}

using Wanted = std::array<bool, kLinearOperands>;

// The same gradients in operations that are differentiable.
std::vector<Tensor> differentiable_linear(const LinearGiven& given, const Tensor& grad,
                                          const Wanted& wanted) {
  const Tensor input = activated(given.hidden, given.activation);
  c10::SmallVector<Tensor, 2> logits;
  for (const LinearGiven::Head& head : given.heads)
    logits.push_back(at::linear(input, head.weight, head.bias));
  const Tensor flat_target =
      given.is_sparse() ? given.target
                        : given.target.reshape_symint({given.target.sym_size(0), given.outputs()});
  const size_t count = given.heads.size();
  std::array<bool, 6> of_each = {true,  count > 1 || wanted[kLast], wanted[kLast], wanted[kTarget],
                                 false, wanted[kLogLibrary]};
  if (count + given.last.has_value() < 3) of_each[2] = false;
  if (count + given.last.has_value() < 2) of_each[1] = false;
  const std::array<Tensor, 6> g =
      differentiable_gradients(given.of(logits, flat_target), grad, of_each);
  std::vector<Tensor> grads(kLinearOperands);
  Tensor grad_input;
  for (size_t i = 0; i < count; ++i) {
    const Tensor flat = g[i].flatten(0, -2);
    grad_input = add_defined(grad_input, g[i].matmul(given.heads[i].weight));
    grads[i == 0 ? kWeight : kSecondWeight] = flat.t().mm(input.flatten(0, -2));
    grads[i == 0 ? kBias : kSecondBias] = flat.sum(0);
  }
  grads[kHidden] = activation_grad(grad_input, input, given.activation);
  if (wanted[kTarget]) grads[kTarget] = g[3].view_symint(given.target.sym_sizes());
  if (wanted[kLast]) grads[kLast] = g[count];
  grads[kLogLibrary] = g[5];
  return grads;
}

struct LinearNLL : Function<LinearNLL> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, Likelihood likelihood, const Tensor& hidden,
                               const Tensor& weight, const MaybeTensor& bias, const Tensor& target,
                               const MaybeTensor& second_weight, const MaybeTensor& second_bias,
                               const MaybeTensor& last, const MaybeTensor& log_library,
                               const MaybeTensor& crow_indices, const MaybeTensor& col_indices,
                               Activation f, Reduction reduction, Wanted written, bool keep,
                               bool check_target) {
    const char* name = row_of(likelihood).name;
    const auto activation = static_cast<int64_t>(f);
    Tensor rows, logits;
    if (std::find(written.begin(), written.end(), true) != written.end()) {
      std::vector<Tensor> grads;
      std::tie(rows, grads) = call<linear_nll_with_grads>(
          "fastvae::linear_nll_with_grads", name, hidden, weight, bias, target, second_weight,
          second_bias, last, log_library, crow_indices, col_indices, activation,
          reduction == Reduction::mean, written, check_target);
      for (size_t i = 0; i < written.size(); ++i) grads[i] = if_wanted(written[i], grads[i]);
      keep_written(ctx, std::move(grads));
    } else {
      std::tie(rows, logits) =
          call<linear_nll_forward>("fastvae::linear_nll_forward", name, hidden, weight, bias,
                                   target, second_weight, second_bias, last, log_library,
                                   crow_indices, col_indices, activation, keep, check_target);
    }
    const auto saved = [](const MaybeTensor& t) { return t.value_or(Tensor()); };
    ctx->save_for_backward({hidden, weight, saved(bias), target, saved(second_weight),
                            saved(second_bias), saved(last), saved(log_library),
                            saved(crow_indices), saved(col_indices), if_wanted(keep, logits)});
    ctx->saved_data["likelihood"] = static_cast<int64_t>(likelihood);
    ctx->saved_data["reduction"] = static_cast<int64_t>(reduction);
    ctx->saved_data["activation"] = activation;
    return {reduce(rows, reduction)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const int64_t activation = ctx->saved_data["activation"].toInt();
    const LinearGiven given(static_cast<Likelihood>(ctx->saved_data["likelihood"].toInt()),
                            saved[0], saved[1], maybe(saved[2]), saved[3], maybe(saved[4]),
                            maybe(saved[5]), maybe(saved[6]), maybe(saved[7]), maybe(saved[8]),
                            maybe(saved[9]), static_cast<Activation>(activation));
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
    const auto per_row = [&] { return unreduce(grads[0], reduction, given.rows()); };
    // An absent tensor has no index.
    Wanted wanted;
    for (size_t i = 0, next = 0; i < wanted.size(); ++i)
      wanted[i] = saved[i].defined() && ctx->needs_input_grad(next++);
    std::vector<Tensor> g;
    if (graph_wanted()) {
      g = differentiable_linear(given, per_row(), wanted);
    } else {
      g = take_written(ctx, grads[0]);  // of all or of none
      if (g.empty())
        g = call<linear_nll_backward>("fastvae::linear_nll_backward", per_row(),
                                      row_of(given.likelihood).name, saved[0], saved[1],
                                      maybe(saved[2]), saved[3], maybe(saved[4]), maybe(saved[5]),
                                      maybe(saved[6]), maybe(saved[7]), maybe(saved[8]),
                                      maybe(saved[9]), activation, maybe(saved[10]), wanted);
    }
    variable_list result(16);
    for (size_t i = 0; i < g.size(); ++i) result[i + 1] = if_wanted(wanted[i], g[i]);
    return result;
  }
};

}  // namespace

Tensor linear_nll(c10::string_view name, const Tensor& hidden, const Tensor& weight,
                  const MaybeTensor& bias, const Tensor& target, c10::string_view reduction,
                  bool check_target, std::optional<c10::string_view> activation,
                  const MaybeTensor& second_weight, const MaybeTensor& second_bias,
                  const MaybeTensor& last, const MaybeTensor& log_library,
                  const MaybeTensor& crow_indices, const MaybeTensor& col_indices) {
  const Likelihood likelihood = likelihood_of(name);
  const bool is_sparse = crow_indices.has_value();
  const std::string op = linear_op(likelihood);
  check_dense(op.c_str(), target);
  // The layers' results are rows [.., B, D]: what is of the columns is as they are.
  const int64_t event = is_sparse ? 1 : target.dim() - 1;
  MaybeTensor shared = last;
  if (last.has_value() && last->dim() > 0 && event == 0) shared = last->unsqueeze(-1);
  if (last.has_value() && last->dim() > 0 && event > 1) {
    const c10::SymIntArrayRef sizes = target.sym_sizes().slice(1);
    TORCH_CHECK_VALUE(last->sym_sizes() == sizes, op, ": ",
                      row_of(likelihood).parameters[row_of(likelihood).count - 1],
                      " must be one value or have the shape of a target's event, ", sizes, ", got ",
                      last->sym_sizes());
    shared = last->flatten();
  }
  const Reduction parsed = parse_reduction(op.c_str(), reduction);
  const Activation f = parse_activation(op.c_str(), activation);
  TORCH_CHECK_VALUE(!is_sparse || !target.requires_grad(), op,
                    ": a sparse target must not require a gradient");
  const Wanted wanted = {requires_grad(hidden),        requires_grad(weight),
                         requires_grad(bias),          requires_grad(target),
                         requires_grad(second_weight), requires_grad(second_bias),
                         requires_grad(shared),        requires_grad(log_library)};
  const bool any = std::find(wanted.begin(), wanted.end(), true) != wanted.end();
  // Where the forward pass can write the gradients of all, it does.
  const bool with_grads = writes_grad(any && !wanted[kTarget], hidden, parsed) &&
                          (!wanted[kLast] || (shared->dim() == 1 && shared->sym_numel() > 1));
  const bool keep =
      graph_wanted() && !with_grads && any && keeps_logits(hidden, weight, second_weight);
  return LinearNLL::apply(likelihood, hidden, weight, bias, target, second_weight, second_bias,
                          shared, log_library, crow_indices, col_indices, f, parsed,
                          with_grads ? wanted : Wanted{}, keep, check_target)[0];
}

}  // namespace fastvae::ops
