// What the autograd Functions share. A first derivative is one call of a NAME_backward kernel;
// where a graph of the derivative itself is needed (create_graph=True), the same derivative is
// computed by ATen operations, which autograd then differentiates to any order. Likelihoods have a
// kernel for the second derivative too, and no third one.
//
// torch::autograd::Function refuses forward-mode derivatives and functorch's transforms; under the
// latter the Python functions call the reference instead.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../ops.h"

namespace fastvae::ops {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Calls the operator that `function` implements, through the dispatcher: so that tracing sees it.
template <auto* function, class... Args>
auto above_autograd(const char* name, Args&&... args) {
  using Signature = std::remove_pointer_t<decltype(function)>;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
  return op.call(std::forward<Args>(args)...);
}

// A gradient that is given with a derivative of its own would lose it.
template <class T>
void refuse_tangent(const T&) {}
inline void refuse_tangent(const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t.defined() || !t._fw_grad(0).defined(),
                              "fastvae: forward-mode derivatives need torch.func");
}
inline void refuse_tangent(const MaybeTensor& t) {
  if (t.has_value()) refuse_tangent(*t);
}

// The same below autograd, and below autocast, which a backward pass may be run under: the operands
// were cast when the forward pass was, and torch's products in here have the dtype that they have.
template <auto* function, class... Args>
auto call(const char* name, Args&&... args) {
  (refuse_tangent(args), ...);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::impl::ExcludeDispatchKeyGuard below_autocast(c10::autocast_dispatch_keyset);
  return above_autograd<function>(name, std::forward<Args>(args)...);
}

// An undefined tensor, which autograd reads as no gradient, where none was wanted.
inline Tensor if_wanted(bool wanted, const Tensor& t) { return wanted ? t : Tensor(); }

inline bool graph_wanted() { return at::GradMode::is_enabled(); }

inline bool requires_grad(const MaybeTensor& t) { return t.has_value() && t->requires_grad(); }

inline MaybeTensor maybe(const Tensor& t) { return t.defined() ? MaybeTensor(t) : std::nullopt; }

// Sum over the K samples of a gradient that belongs to [B, *E].
inline Tensor fold(const Tensor& grad, bool has_samples) {
  return has_samples ? grad.sum(0) : grad;
}

inline Tensor as_input(const Tensor& grad, const Tensor& input) {
  return grad.to(input.scalar_type());
}

// Upstream gradient of the per-row values from that of their reduction.
Tensor unreduce(const Tensor& grad, Reduction reduction, c10::SymIntArrayRef rows);
// [B] or [K, B] beside [.., *E].
Tensor beside_event(Tensor per_row, int64_t event_dims);
// Their sum, if both are there, or the one that is.
Tensor add_defined(const Tensor& a, const Tensor& b);
// See ops.h. aten.empty is among the few that are never merged with their equals.
MaybeTensor unique_if_traced(const Tensor& input);
// What is saved of a Reduction.
int64_t reduction_code(const char* op, c10::string_view name);

// Whether the forward pass writes the gradient: a loss that is a scalar knows it up to one factor.
// Not in float16, where the factor may be a loss scale that must come before the rounding.
bool writes_grad(bool wanted, const Tensor& logits, Reduction reduction);
// The gradients that the forward pass wrote, undefined where it did not, are no saved variables:
// who gets them may write to them, and a second pass over a retained graph starts from the inputs.
void keep_written(AutogradContext* ctx, variable_list written);
// `factor` times them, or nothing if there are none, or none any more.
variable_list take_written(AutogradContext* ctx, const Tensor& factor);

// Gradients as differentiable operations, where several operators have them.

// d (sigma eps) / d logvar, summed over samples.
Tensor sample_grad_logvar(const Tensor& grad_z, const Tensor& logvar, const Tensor& key,
                          bool has_samples);

struct MomentGrads {
  Tensor mu, logvar, prior_mu, prior_logvar;
};
// Of gaussian_kl; `grad` is [B].
MomentGrads gaussian_kl_grads(const Tensor& grad, const Tensor& mu, const Tensor& logvar,
                              const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar);

}  // namespace fastvae::ops
