// The autograd Functions. A first derivative is one call of a NAME_backward kernel; where a graph
// of the derivative itself is asked for (create_graph=True), the same derivative is taken in ATen
// operations, which autograd then differentiates to any order.
//
// Forward-mode derivatives and functorch's transforms are refused by torch::autograd::Function; the
// Python functions send the latter to the reference.

#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sigmoid.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ops.h"

namespace fastvae::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Calls the operator that `function` implements, below autograd, through the dispatcher: so that
// tracing sees it.
template <auto* function, class... Args>
auto call(const char* name, Args&&... args) {
  using Signature = std::remove_pointer_t<decltype(function)>;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(std::forward<Args>(args)...);
}

// An undefined tensor, which autograd reads as no gradient, where none was wanted.
Tensor if_wanted(bool wanted, const Tensor& t) { return wanted ? t : Tensor(); }

bool graph_wanted() { return at::GradMode::is_enabled(); }

MaybeTensor maybe(const Tensor& t) { return t.defined() ? MaybeTensor(t) : std::nullopt; }

// Upstream gradient of the per-row values from that of their reduction.
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

// [B] or [K, B] beside [.., *E].
Tensor beside_event(Tensor per_row, int64_t event_dims) {
  for (int64_t i = 0; i < event_dims; ++i) per_row = per_row.unsqueeze(-1);
  return per_row;
}

// Sum over the K samples of a gradient that belongs to [B, *E].
Tensor fold(const Tensor& grad, bool has_samples) { return has_samples ? grad.sum(0) : grad; }

Tensor as_input(const Tensor& grad, const Tensor& input) { return grad.to(input.scalar_type()); }

Tensor add_defined(const Tensor& a, const Tensor& b) {
  return a.defined() && b.defined() ? a + b : a.defined() ? a : b;
}

// See ops.h. aten.empty is among the few that are never merged with their equals.
MaybeTensor unique_if_traced(const Tensor& input) {
  if (!at::isTensorSubclassLike(input)) return std::nullopt;
  return at::empty({0}, input.options());
}

// d (sigma eps) / d logvar, summed over samples, as differentiable operations.
Tensor sample_grad_logvar(const Tensor& grad_z, const Tensor& logvar, const Tensor& key,
                          bool has_samples) {
  const auto dtype = grad_z.scalar_type();
  const Tensor eps = call<normal>("fastvae::normal", key, grad_z.sym_sizes(), dtype);
  return fold(grad_z * eps, has_samples) * (logvar.to(dtype) * 0.5).exp() * 0.5;
}

struct MomentGrads {
  Tensor mu, logvar, prior_mu, prior_logvar;
};

// gaussian_kl's gradients as differentiable operations; `grad` is [B].
MomentGrads gaussian_kl_grads(const Tensor& grad, const Tensor& mu, const Tensor& logvar,
                              const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar) {
  const auto dtype = grad.scalar_type();
  const Tensor g = beside_event(grad, mu.dim() - 1);
  const Tensor lv = logvar.to(dtype);
  if (!prior_mu.has_value())
    return {g * mu.to(dtype), g * (lv.exp() - 1) * 0.5, Tensor(), Tensor()};
  const Tensor plv = prior_logvar->to(dtype);
  const Tensor difference = mu.to(dtype) - prior_mu->to(dtype);
  const Tensor whitened = difference * (-plv).exp();
  const Tensor ratio = (lv - plv).exp();
  return {g * whitened, g * (ratio - 1) * 0.5, -(g * whitened),
          g * (1 - ratio - difference * whitened) * 0.5};
}

// sigmoid_cross_entropy's gradients likewise; `grad` is [B] or [K, B].
std::pair<Tensor, Tensor> sigmoid_cross_entropy_grads(const Tensor& grad, const Tensor& logits,
                                                      const Tensor& target) {
  const auto dtype = grad.scalar_type();
  const Tensor g = beside_event(grad, target.dim() - 1);
  const Tensor l = logits.to(dtype);
  return {g * (l.sigmoid() - target_values(target, dtype)),
          fold(-(g * l), logits.dim() > target.dim())};
}

// Whether the forward pass writes the gradient: a loss that is a scalar knows it up to one factor.
// Not in float16, where the factor may be a loss scale that must come before the rounding.
bool writes_grad(bool wanted, const Tensor& logits, Reduction reduction) {
  return graph_wanted() && wanted && reduction != Reduction::none &&
         logits.scalar_type() != at::kHalf;
}

// The gradients that the forward pass wrote, undefined where it did not, are no saved variables:
// who gets them may write to them, and a second pass over a retained graph starts from the inputs.
void keep_written(AutogradContext* ctx, variable_list written) {
  ctx->saved_data["written"] = std::move(written);
}

// `factor` times them, or nothing if there are none, or none any more.
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

// sigmoid_cross_entropy's gradients by kernels: per_row() is the upstream gradient, [B] or [K, B],
// and `factor` that of what the forward pass wrote, if it did.
template <class F>
std::tuple<Tensor, Tensor> sigmoid_cross_entropy_kernel_grads(
    AutogradContext* ctx, const F& per_row, const Tensor& factor, const Tensor& logits,
    const Tensor& target, std::array<bool, 2> wanted) {
  variable_list written;
  if (wanted[0]) written = take_written(ctx, factor);
  if (!written.empty()) wanted[0] = false;
  Tensor grad_logits, grad_target;
  if (wanted[0] || wanted[1])
    std::tie(grad_logits, grad_target) = call<sigmoid_cross_entropy_backward>(
        "fastvae::sigmoid_cross_entropy_backward", per_row(), logits, target, wanted);
  return {written.empty() ? grad_logits : written[0], grad_target};
}

struct Reparameterize : Function<Reparameterize> {
  static constexpr bool is_traceable = true;  // by compiled autograd

  static variable_list forward(AutogradContext* ctx, const Tensor& mu, const Tensor& logvar,
                               std::optional<c10::SymInt> num_samples, MaybeGenerator generator) {
    auto [z, key] = call<reparameterize_forward>("fastvae::reparameterize_forward", mu, logvar,
                                                 num_samples, generator, unique_if_traced(mu));
    ctx->save_for_backward({if_wanted(logvar.requires_grad(), logvar), key});
    ctx->saved_data["mu_dtype"] = static_cast<int64_t>(mu.scalar_type());
    ctx->saved_data["has_samples"] = num_samples.has_value();
    return {z};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &logvar = saved[0], &key = saved[1], &grad = grads[0];
    const auto mu_dtype = static_cast<at::ScalarType>(ctx->saved_data["mu_dtype"].toInt());
    const bool has_samples = ctx->saved_data["has_samples"].toBool();
    const bool mu_wanted = ctx->needs_input_grad(0), logvar_wanted = ctx->needs_input_grad(1);
    Tensor grad_mu = grad, grad_logvar;  // without samples, mu's is the upstream tensor itself
    if (graph_wanted() || !logvar_wanted) {
      const Tensor g = has_samples || graph_wanted() ? grad.to(sum_dtype({grad})) : grad;
      grad_mu = fold(g, has_samples);
      if (logvar_wanted)
        grad_logvar = as_input(sample_grad_logvar(g, logvar, key, has_samples), logvar);
    } else {
      const std::array<bool, 2> mask = {mu_wanted && has_samples, true};
      auto [folded, by_logvar] = call<reparameterize_backward>("fastvae::reparameterize_backward",
                                                               grad, logvar, key, mask);
      if (has_samples) grad_mu = folded;
      grad_logvar = by_logvar;
    }
    return {mu_wanted ? grad_mu.to(mu_dtype) : Tensor(), grad_logvar, Tensor(), Tensor()};
  }
};

struct GaussianKL : Function<GaussianKL> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& mu, const Tensor& logvar,
                               const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar,
                               int64_t reduction) {
    const Tensor kl = call<gaussian_kl_forward>("fastvae::gaussian_kl_forward", mu, logvar,
                                                prior_mu, prior_logvar);
    ctx->save_for_backward(
        {mu, logvar, prior_mu.value_or(Tensor()), prior_logvar.value_or(Tensor())});
    ctx->saved_data["reduction"] = reduction;
    return {reduce(kl, static_cast<Reduction>(reduction))};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &mu = saved[0], &logvar = saved[1];
    const MaybeTensor prior_mu = maybe(saved[2]), prior_logvar = maybe(saved[3]);
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
    const std::array<bool, 4> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        prior_mu.has_value() && ctx->needs_input_grad(2),
                                        prior_logvar.has_value() && ctx->needs_input_grad(3)};
    MomentGrads g;
    if (graph_wanted()) {
      const Tensor grad = unreduce(grads[0], reduction, mu.sym_sizes().slice(0, 1));
      g = gaussian_kl_grads(grad, mu, logvar, prior_mu, prior_logvar);
      g.mu = as_input(g.mu, mu);
      g.logvar = as_input(g.logvar, logvar);
      if (wanted[2]) g.prior_mu = as_input(g.prior_mu, *prior_mu);
      if (wanted[3]) g.prior_logvar = as_input(g.prior_logvar, *prior_logvar);
    } else {
      std::tie(g.mu, g.logvar, g.prior_mu, g.prior_logvar) = call<gaussian_kl_backward>(
          "fastvae::gaussian_kl_backward", grads[0], mu, logvar, prior_mu, prior_logvar, 1,
          reduction == Reduction::mean, wanted);
    }
    return {if_wanted(wanted[0], g.mu), if_wanted(wanted[1], g.logvar),
            if_wanted(wanted[2], g.prior_mu), if_wanted(wanted[3], g.prior_logvar), Tensor()};
  }
};

// sample_kl's gradients likewise; one of the upstream gradients may be undefined.
std::tuple<Tensor, Tensor> sample_kl_grads(const Tensor& grad_z, const Tensor& grad_kl,
                                           const Tensor& mu, const Tensor& logvar,
                                           const Tensor& key) {
  Tensor grad_mu, grad_logvar;
  if (grad_kl.defined()) {
    const MomentGrads g = gaussian_kl_grads(grad_kl, mu, logvar, {}, {});
    grad_mu = g.mu;
    grad_logvar = g.logvar;
  }
  if (grad_z.defined()) {
    const Tensor g = grad_z.to(sum_dtype({mu, logvar}));
    grad_mu = add_defined(grad_mu, g);
    grad_logvar = add_defined(grad_logvar, sample_grad_logvar(g, logvar, key, false));
  }
  return {as_input(grad_mu, mu), as_input(grad_logvar, logvar)};
}

struct SampleKL : Function<SampleKL> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& mu, const Tensor& logvar,
                               MaybeGenerator generator) {
    auto [z, kl, key] = call<sample_kl_forward>("fastvae::sample_kl_forward", mu, logvar, generator,
                                                unique_if_traced(mu));
    ctx->save_for_backward({mu, logvar, key});
    ctx->set_materialize_grads(false);  // z or kl may go unused
    return {z, kl};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &mu = saved[0], &logvar = saved[1], &key = saved[2];
    const Tensor &grad_z = grads[0], &grad_kl = grads[1];
    const std::array<bool, 2> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    if (!grad_z.defined() && !grad_kl.defined()) return {Tensor(), Tensor(), Tensor()};
    const auto [grad_mu, grad_logvar] =
        graph_wanted() ? sample_kl_grads(grad_z, grad_kl, mu, logvar, key)
                       : call<sample_kl_backward>("fastvae::sample_kl_backward", maybe(grad_z),
                                                  maybe(grad_kl), mu, logvar, key, wanted);
    return {if_wanted(wanted[0], grad_mu), if_wanted(wanted[1], grad_logvar), Tensor()};
  }
};

// The same of moments in one tensor, whose gradient is written in one: that of two views of it
// would be put together by a copy.
struct SampleKLPacked : Function<SampleKLPacked> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& moments,
                               MaybeGenerator generator) {
    const auto [mu, logvar] = halves(moments);
    auto [z, kl, key] = call<sample_kl_forward>("fastvae::sample_kl_forward", mu, logvar, generator,
                                                unique_if_traced(moments));
    ctx->save_for_backward({moments, key});
    ctx->set_materialize_grads(false);
    return {z, kl};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &moments = saved[0], &key = saved[1], &grad_z = grads[0], &grad_kl = grads[1];
    if (!grad_z.defined() && !grad_kl.defined()) return {Tensor(), Tensor()};
    if (!graph_wanted())
      return {call<sample_kl_packed_backward>("fastvae::sample_kl_packed_backward", maybe(grad_z),
                                              maybe(grad_kl), moments, key),
              Tensor()};
    const auto [mu, logvar] = halves(moments);
    const auto [grad_mu, grad_logvar] = sample_kl_grads(grad_z, grad_kl, mu, logvar, key);
    return {at::cat({grad_mu, grad_logvar}, 1), Tensor()};
  }
};

struct SigmoidCrossEntropy : Function<SigmoidCrossEntropy> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& target,
                               Reduction reduction, bool with_grad) {
    Tensor rows, grad_logits;
    if (with_grad)
      std::tie(rows, grad_logits) = call<sigmoid_cross_entropy_with_grad>(
          "fastvae::sigmoid_cross_entropy_with_grad", logits, target, reduction == Reduction::mean);
    else
      rows = call<sigmoid_cross_entropy_forward>("fastvae::sigmoid_cross_entropy_forward", logits,
                                                 target);
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
            Tensor()};
  }
};

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
                               bool with_grad, bool keep) {
    const std::array<bool, 3> wanted = {hidden.requires_grad(), weight.requires_grad(),
                                        bias.has_value() && bias->requires_grad()};
    Tensor rows, logits;
    std::array<Tensor, 3> grads;
    if (with_grad)
      std::tie(rows, grads[0], grads[1], grads[2]) = call<linear_sigmoid_cross_entropy_with_grad>(
          "fastvae::linear_sigmoid_cross_entropy_with_grad", hidden, weight, bias, target,
          reduction == Reduction::mean, wanted);
    else
      std::tie(rows, logits) = call<linear_sigmoid_cross_entropy_forward>(
          "fastvae::linear_sigmoid_cross_entropy_forward", hidden, weight, bias, target, keep);
    ctx->save_for_backward(
        {hidden, weight, bias.value_or(Tensor()), target, if_wanted(keep, logits)});
    if (with_grad)
      keep_written(ctx, {if_wanted(wanted[0], grads[0]), if_wanted(wanted[1], grads[1]),
                         if_wanted(wanted[2], grads[2])});
    ctx->saved_data["reduction"] = static_cast<int64_t>(reduction);
    return {reduce(rows, reduction)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &hidden = saved[0], &weight = saved[1], &target = saved[3];
    const MaybeTensor bias = maybe(saved[2]);
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
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
      const c10::SymInt outputs = weight.sym_size(0);
      const Tensor flat_target = target.reshape_symint({target.sym_size(0), outputs});
      auto [grad_logits, grad_target] =
          sigmoid_cross_entropy_grads(per_row(), at::linear(hidden, weight, bias), flat_target);
      grad_logits = as_input(grad_logits, hidden);
      const Tensor flat = grad_logits.flatten(0, -2);
      g[0] = grad_logits.matmul(weight);
      g[1] = flat.t().mm(hidden.flatten(0, -2));
      g[2] = flat.sum(0);
      if (wanted[3]) g[3] = as_input(grad_target.view_symint(target.sym_sizes()), target);
    } else {
      // Written only where the target wants nothing.
      const variable_list written = take_written(ctx, grads[0]);
      if (written.empty())
        std::tie(g[0], g[1], g[2], g[3]) = call<linear_sigmoid_cross_entropy_backward>(
            "fastvae::linear_sigmoid_cross_entropy_backward", per_row(), hidden, weight, bias,
            target, maybe(saved[4]), wanted);
      else
        std::copy(written.begin(), written.end(), g.begin());
    }
    return {if_wanted(wanted[0], g[0]),
            if_wanted(wanted[1], g[1]),
            if_wanted(wanted[2], g[2]),
            if_wanted(wanted[3], g[3]),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

struct GaussianNLL : Function<GaussianNLL> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& mean, const Tensor& target,
                               const MaybeTensor& logvar, const MaybeTensor& sigma,
                               double sigma_value, int64_t reduction) {
    const Tensor rows = call<gaussian_nll_forward>("fastvae::gaussian_nll_forward", mean, target,
                                                   logvar, sigma, sigma_value);
    ctx->save_for_backward({mean, target, logvar.value_or(Tensor()), sigma.value_or(Tensor())});
    ctx->saved_data["sigma_value"] = sigma_value;
    ctx->saved_data["reduction"] = reduction;
    return {reduce(rows, static_cast<Reduction>(reduction))};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &mean = saved[0], &target = saved[1];
    const MaybeTensor logvar = maybe(saved[2]), sigma = maybe(saved[3]);
    const double sigma_value = ctx->saved_data["sigma_value"].toDouble();
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
    const int64_t event_dims = target.dim() - 1;
    const bool has_samples = mean.dim() > target.dim();
    const Tensor grad =
        unreduce(grads[0], reduction, mean.sym_sizes().slice(0, has_samples ? 2 : 1));
    const auto dtype = grad.scalar_type();
    // Absent tensors have no index: sigma, given instead of logvar, has the same one.
    const std::array<bool, 4> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        logvar.has_value() && ctx->needs_input_grad(2),
                                        sigma.has_value() && ctx->needs_input_grad(2)};
    Tensor grad_mean, grad_target, grad_logvar, grad_sigma;
    if (graph_wanted()) {
      const Tensor g = beside_event(grad, event_dims);
      Tensor inverse;
      if (logvar.has_value())
        inverse = (logvar->to(dtype) * -0.5).exp();
      else if (sigma.has_value())
        inverse = sigma->to(dtype).reciprocal();
      else
        inverse = at::scalar_tensor(1 / sigma_value, grad.options());
      const Tensor standardised = (mean.to(dtype) - target_values(target, dtype)) * inverse;
      const Tensor by_mean = g * standardised * inverse;
      const Tensor by_log_sigma = g * (1 - standardised.square());
      grad_mean = as_input(by_mean, mean);
      if (wanted[1]) grad_target = as_input(fold(-by_mean, has_samples), target);
      if (wanted[2]) grad_logvar = as_input(by_log_sigma * 0.5, *logvar);
      if (wanted[3]) grad_sigma = as_input(by_log_sigma.sum() * inverse, *sigma);
    } else {
      std::tie(grad_mean, grad_target, grad_logvar, grad_sigma) = call<gaussian_nll_backward>(
          "fastvae::gaussian_nll_backward", grad, mean, target, logvar, sigma, sigma_value, wanted);
    }
    return {if_wanted(wanted[0], grad_mean),
            if_wanted(wanted[1], grad_target),
            if_wanted(wanted[2], grad_logvar),
            if_wanted(wanted[3], grad_sigma),
            Tensor(),
            Tensor()};
  }
};

struct ElboLoss : Function<ElboLoss> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& target,
                               const Tensor& mu, const Tensor& logvar, const MaybeTensor& beta,
                               double beta_value, c10::string_view reduction_name, bool with_grad) {
    auto [loss, reconstruction, kl, grad_logits] =
        call<elbo_loss_forward>("fastvae::elbo_loss_forward", logits, target, mu, logvar, beta,
                                beta_value, reduction_name, with_grad);
    ctx->save_for_backward({logits, target, mu, logvar, beta.value_or(Tensor()), kl});
    if (with_grad) keep_written(ctx, {grad_logits});
    ctx->saved_data["beta_value"] = beta_value;
    ctx->saved_data["reduction"] =
        static_cast<int64_t>(parse_reduction("fastvae.elbo_loss", reduction_name));
    ctx->set_materialize_grads(false);  // most often only the loss is differentiated
    return {loss, reconstruction, kl};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &logits = saved[0], &target = saved[1], &mu = saved[2], &logvar = saved[3];
    const MaybeTensor beta = maybe(saved[4]);
    const Tensor& kl = saved[5];
    const double beta_value = ctx->saved_data["beta_value"].toDouble();
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
    const std::array<bool, 2> inputs_wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const std::array<bool, 4> moments_wanted = {ctx->needs_input_grad(2), ctx->needs_input_grad(3),
                                                false, false};
    const bool has_samples = logits.dim() > target.dim();
    const auto batch = target.sym_sizes().slice(0, 1);

    Tensor grad_logits, grad_target, grad_beta;
    // loss = reconstruction + beta kl
    const Tensor grad_reconstruction = add_defined(grads[0], grads[1]);
    if (grad_reconstruction.defined() && (inputs_wanted[0] || inputs_wanted[1])) {
      const auto per_row = [&] {
        const Tensor grad = unreduce(grad_reconstruction, reduction, batch);
        if (!has_samples) return grad;
        return grad.div(at::Scalar(logits.sym_size(0)))
            .expand_symint(logits.sym_sizes().slice(0, 2));
      };
      if (graph_wanted()) {
        std::tie(grad_logits, grad_target) = sigmoid_cross_entropy_grads(per_row(), logits, target);
        grad_logits = as_input(grad_logits, logits);
        if (inputs_wanted[1]) grad_target = as_input(grad_target, target);
      } else {
        std::tie(grad_logits, grad_target) = sigmoid_cross_entropy_kernel_grads(
            ctx, per_row, grad_reconstruction, logits, target, inputs_wanted);
      }
    }

    MomentGrads moments;
    Tensor grad_kl = grads[2];
    double weight = 1;  // left to the kernel
    if (grads[0].defined()) {
      if (!beta.has_value() && !grad_kl.defined() && !graph_wanted()) {
        grad_kl = grads[0];
        weight = beta_value;
      } else {
        grad_kl =
            add_defined(grad_kl, beta.has_value() ? grads[0] * beta->to(grads[0].scalar_type())
                                                  : grads[0] * beta_value);
      }
      if (beta.has_value() && ctx->needs_input_grad(4))
        grad_beta = as_input((grads[0] * beta_factor(kl, mu, logvar, reduction)).sum(), *beta);
    }
    if (grad_kl.defined() && (moments_wanted[0] || moments_wanted[1])) {
      if (graph_wanted()) {
        const Tensor per_row = unreduce(grad_kl, reduction, batch);
        moments = gaussian_kl_grads(per_row.to(sum_dtype({mu, logvar})), mu, logvar, {}, {});
        moments.mu = as_input(moments.mu, mu);
        moments.logvar = as_input(moments.logvar, logvar);
      } else {
        std::tie(moments.mu, moments.logvar, std::ignore, std::ignore) = call<gaussian_kl_backward>(
            "fastvae::gaussian_kl_backward", grad_kl, mu, logvar, std::nullopt, std::nullopt,
            weight, reduction == Reduction::mean, moments_wanted);
      }
    }
    return {if_wanted(inputs_wanted[0], grad_logits),
            if_wanted(inputs_wanted[1], grad_target),
            if_wanted(moments_wanted[0], moments.mu),
            if_wanted(moments_wanted[1], moments.logvar),
            grad_beta,
            Tensor(),
            Tensor(),
            Tensor()};
  }

  // d loss / d beta: the KL divergence, differentiable itself where a graph is wanted.
  static Tensor beta_factor(const Tensor& kl, const Tensor& mu, const Tensor& logvar,
                            Reduction reduction) {
    if (!graph_wanted()) return kl;
    return GaussianKL::apply(mu, logvar, MaybeTensor(), MaybeTensor(),
                             static_cast<int64_t>(reduction))[0];
  }
};

int64_t reduction_code(const char* op, c10::string_view name) {
  return static_cast<int64_t>(parse_reduction(op, name));
}

}  // namespace

Tensor reparameterize(const Tensor& mu, const Tensor& logvar,
                      std::optional<c10::SymInt> num_samples, MaybeGenerator generator) {
  return Reparameterize::apply(mu, logvar, num_samples, generator)[0];
}

Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                   const MaybeTensor& prior_logvar, c10::string_view reduction) {
  return GaussianKL::apply(mu, logvar, prior_mu, prior_logvar,
                           reduction_code("fastvae.gaussian_kl", reduction))[0];
}

std::tuple<Tensor, Tensor> sample_kl(const Tensor& mu, const Tensor& logvar,
                                     MaybeGenerator generator) {
  const variable_list out = SampleKL::apply(mu, logvar, generator);
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor> sample_kl_packed(const Tensor& moments, MaybeGenerator generator) {
  const variable_list out = SampleKLPacked::apply(moments, generator);
  return {out[0], out[1]};
}

Tensor sigmoid_cross_entropy(const Tensor& logits, const Tensor& target,
                             c10::string_view reduction) {
  const Reduction parsed = parse_reduction("fastvae.sigmoid_cross_entropy", reduction);
  return SigmoidCrossEntropy::apply(logits, target, parsed,
                                    writes_grad(logits.requires_grad(), logits, parsed))[0];
}

Tensor linear_sigmoid_cross_entropy(const Tensor& hidden, const Tensor& weight,
                                    const MaybeTensor& bias, const Tensor& target,
                                    c10::string_view reduction) {
  const Reduction parsed = parse_reduction("fastvae.linear_sigmoid_cross_entropy", reduction);
  const bool any = hidden.requires_grad() || weight.requires_grad() ||
                   (bias.has_value() && bias->requires_grad());
  const bool with_grad = writes_grad(any && !target.requires_grad(), hidden, parsed);
  const bool keep = graph_wanted() && !with_grad && (any || target.requires_grad()) &&
                    keeps_logits(hidden, weight);
  return LinearSigmoidCrossEntropy::apply(hidden, weight, bias, target, parsed, with_grad, keep)[0];
}

Tensor gaussian_nll(const Tensor& mean, const Tensor& target, const MaybeTensor& logvar,
                    const MaybeTensor& sigma, double sigma_value, c10::string_view reduction) {
  return GaussianNLL::apply(mean, target, logvar, sigma, sigma_value,
                            reduction_code("fastvae.gaussian_nll", reduction))[0];
}

std::tuple<Tensor, Tensor, Tensor> elbo_loss(const Tensor& logits, const Tensor& target,
                                             const Tensor& mu, const Tensor& logvar,
                                             const MaybeTensor& beta, double beta_value,
                                             c10::string_view reduction) {
  const bool with_grad =
      writes_grad(logits.requires_grad(), logits, parse_reduction("fastvae.elbo_loss", reduction));
  const variable_list out =
      ElboLoss::apply(logits, target, mu, logvar, beta, beta_value, reduction, with_grad);
  return {out[0], out[1], out[2]};
}

Tensor binarize(const Tensor& images, MaybeGenerator generator, const MaybeTensor& index,
                at::ScalarType dtype) {
  TORCH_CHECK_VALUE(
      !at::isFloatingType(dtype) || !((at::GradMode::is_enabled() && images.requires_grad()) ||
                                      images._fw_grad(/*level=*/0).defined()),
      "fastvae.binarize: a draw has no derivative: images must not require one");
  return call<binarize_forward>("fastvae::binarize_forward", images, index, dtype, generator,
                                unique_if_traced(images));
}

}  // namespace fastvae::ops
