#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/scalar_tensor.h>

#include "../rows.h"
#include "likelihood.h"
#include "results.h"

namespace fastvae::ops {

std::tuple<Tensor, Tensor, Tensor, Tensor> elbo_loss_forward(
    const Tensor& logits, const Tensor& target, const Tensor& mu, const Tensor& logvar,
    const MaybeTensor& beta, double beta_value, c10::string_view reduction_name, bool with_grad,
    bool check_target) {
  const char* op = "fastvae.elbo_loss";
  const Reduction reduction = parse_reduction(op, reduction_name);
  ops::check_target(op, target);
  const bool has_samples = check_samples(op, "logits", logits, target);
  check_moments(op, mu, logvar);
  check_same_device(op, "logits", logits, "mu", mu);
  TORCH_CHECK_VALUE(mu.sym_size(0) == target.sym_size(0), op,
                    ": logits and mu must have the same batch size, got logits ",
                    logits.sym_sizes(), " and mu ", mu.sym_sizes());
  if (beta.has_value()) {
    check_floating(op, "beta", *beta);
    TORCH_CHECK_VALUE(beta->dim() == 0, op, ": beta must be a float or a 0-d tensor, got shape ",
                      beta->sym_sizes());
    check_same_device(op, "logits", logits, "beta", *beta);
  }
  if (check_target) check_probabilities(op, target);
  const double known_beta = host_value(beta, beta_value);
  TORCH_CHECK_VALUE(std::isfinite(known_beta), op, ": beta must be finite, got ", known_beta);

  Tensor grad_logits = grad_like(logits, with_grad);
  double scale = 1;
  if (with_grad && !logits.is_meta()) {
    if (has_samples) scale /= static_cast<double>(logits.size(0));
    if (reduction == Reduction::mean) scale /= static_cast<double>(target.size(0));
  }
  c10::SmallVector<Rows::Result, 1> grads;
  if (with_grad) grads.push_back({grad_logits, true});
  Tensor reconstruction =
      sums_and_grads({Likelihood::sigmoid_cross_entropy, logits, {}, {}, target}, scale, grads);
  const Tensor kl = gaussian_kl_forward(mu, logvar, {}, {});
  if (reduction == Reduction::none) {
    // The expectation over q of eq. 5, by its K samples.
    if (has_samples) reconstruction = reconstruction.mean(0);
    const Tensor weighted =
        beta.has_value() ? kl.mul(beta->to(kl.scalar_type())) : kl.mul(beta_value);
    return {reconstruction.add(weighted), reconstruction, kl, grad_logits};
  }
  const auto scalar_like = [](const Tensor& t) { return at::empty({}, t.options()); };
  Tensor total_reconstruction = scalar_like(reconstruction), total_kl = scalar_like(kl);
  Tensor loss = scalar_like(kl.scalar_type() == at::kDouble ? kl : reconstruction);
  if (logits.is_meta()) return {loss, total_reconstruction, total_kl, grad_logits};
  Input weight;
  weight.value = beta_value;
  if (beta.has_value()) weight = scalar_input(*beta);
  const Extent extent{has_samples ? logits.size(0) : 1, target.size(0), 1};
  KernelsFor(logits)->elbo(extent, sums_of(reconstruction), sums_of(kl), weight,
                           reduction == Reduction::mean, sums_of(loss),
                           sums_of(total_reconstruction), sums_of(total_kl));
  return {loss, total_reconstruction, total_kl, grad_logits};
}

namespace {

struct ElboLoss : Function<ElboLoss> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& target,
                               const Tensor& mu, const Tensor& logvar, const MaybeTensor& beta,
                               double beta_value, c10::string_view reduction_name, bool with_grad,
                               bool check_target) {
    auto [loss, reconstruction, kl, grad_logits] =
        call<elbo_loss_forward>("fastvae::elbo_loss_forward", logits, target, mu, logvar, beta,
                                beta_value, reduction_name, with_grad, check_target);
    // None of the results: who gets them may write to them, and a saved result would keep this
    // node, which keeps it.
    ctx->save_for_backward({logits, target, mu, logvar, beta.value_or(Tensor())});
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
      std::tie(grad_logits, grad_target) =
          likelihood_grads(ctx, Likelihood::sigmoid_cross_entropy, per_row, grad_reconstruction,
                           logits, target, inputs_wanted);
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
        grad_beta = as_input((grads[0] * beta_factor(mu, logvar, reduction)).sum(), *beta);
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
            Tensor(),
            Tensor()};
  }

  // d loss / d beta: the KL divergence, differentiable itself where a graph is wanted.
  static Tensor beta_factor(const Tensor& mu, const Tensor& logvar, Reduction reduction) {
    return reduce(gaussian_kl(mu, logvar, {}, {}, "none"), reduction);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> elbo_loss(const Tensor& logits, const Tensor& target,
                                             const Tensor& mu, const Tensor& logvar,
                                             const MaybeTensor& beta, double beta_value,
                                             c10::string_view reduction, bool check_target) {
  check_dense("fastvae.elbo_loss", target);
  const bool with_grad =
      writes_grad(logits.requires_grad(), logits, parse_reduction("fastvae.elbo_loss", reduction));
  const variable_list out = ElboLoss::apply(logits, target, mu, logvar, beta, beta_value, reduction,
                                            with_grad, check_target);
  return {out[0], out[1], out[2]};
}

}  // namespace fastvae::ops
