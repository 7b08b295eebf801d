#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "../rows.h"
#include "autograd.h"
#include "results.h"

namespace fastvae::ops {
namespace {

// One standard deviation for all elements, as the kernels take it.
struct Spread {
  Tensor logvar_tensor, inverse_tensor;  // own what the inputs point to
  Input logvar, inverse;
};

Spread spread_of(const MaybeTensor& sigma, double sigma_value, at::ScalarType dtype) {
  Spread spread;
  if (sigma.has_value()) {
    const Tensor s = sigma->to(dtype);
    spread.logvar_tensor = s.log().mul_(2);
    spread.inverse_tensor = s.reciprocal();
    spread.logvar = scalar_input(spread.logvar_tensor);
    spread.inverse = scalar_input(spread.inverse_tensor);
  } else {
    spread.logvar.value = 2 * std::log(sigma_value);
    spread.inverse.value = 1 / sigma_value;
  }
  return spread;
}

void check_spread(const char* op, const Tensor& mean, const MaybeTensor& logvar,
                  const MaybeTensor& sigma, double sigma_value) {
  if (logvar.has_value()) {
    check_floating(op, "logvar", *logvar);
    check_shared(op, "mean", mean, "logvar", *logvar);
    check_same_device(op, "mean", mean, "logvar", *logvar);
    return;
  }
  if (sigma.has_value()) {
    check_floating(op, "sigma", *sigma);
    TORCH_CHECK_VALUE(sigma->dim() == 0, op, ": sigma must be a float or a 0-d tensor, got shape ",
                      sigma->sym_sizes());
    check_same_device(op, "mean", mean, "sigma", *sigma);
    sigma_value = host_value(sigma, sigma_value);
  }
  TORCH_CHECK_VALUE(std::isfinite(sigma_value) && sigma_value > 0, op,
                    ": sigma must be positive and finite, got ", sigma_value);
}

// Row sums of the gradient of log variances that the last dimensions share, summed further to
// their shape. What is expanded here is by those dimensions smaller than an event.
Tensor logvar_grad_by_rows(const KernelsFor& kernels, const Tensor& grad, const Tensor& mean,
                           const Tensor& target, const Tensor& logvar, int64_t shared_dims) {
  const int64_t event = target.dim() - 1, samples = mean.dim() - target.dim();
  const auto own = mean.sizes().slice(0, mean.dim() - shared_dims);  // [B, ..] or [K, B, ..]
  Tensor logvar_rows = logvar.expand(mean.sizes()), upstream = grad;
  for (int64_t i = 0; i < shared_dims; ++i) logvar_rows = logvar_rows.select(-1, 0);
  for (int64_t i = 0; i < event - shared_dims; ++i) upstream = upstream.unsqueeze(-1);
  const auto flat = [&](const Tensor& t) { return t.expand(own).flatten(samples); };
  const int64_t shared = mean.numel() / c10::multiply_integers(own);
  const Tensor mean_rows =
      samples ? mean.reshape({own[0], -1, shared}) : mean.reshape({-1, shared});
  const Tensor target_rows = target.reshape({-1, shared});
  const Rows rows(mean_rows, 1, RowOrder::row_major, {mean_rows, target_rows});
  const Tensor sums = at::empty(flat(upstream).sizes(), grad.options());
  const Tensor upstream_rows = flat(upstream), by_row = flat(logvar_rows);
  kernels->gaussian_nll_grad_logvar_rows(rows.extent, rows.upstream(upstream_rows), rows.input(0),
                                         rows.target(1), rows.upstream(by_row), sums_of(sums));
  c10::SmallVector<int64_t, 8> sizes(own.begin(), own.end());
  sizes.resize(static_cast<size_t>(mean.dim()), 1);
  return sum_to_shape(sums.view(sizes), logvar.sizes());
}

// The gradient of log variances that are broadcast, in their shape; that of the mean comes by the
// way where it can.
Tensor shared_logvar_grad(const KernelsFor& kernels, const Tensor& grad, const Tensor& mean,
                          const Tensor& target, const Tensor& logvar, const Tensor& grad_mean,
                          bool mean_wanted) {
  const int64_t event = target.dim() - 1;
  if (logvar.numel() > 1 && same_for_all_rows(logvar, event)) {
    Rows rows(mean, event, RowOrder::any, {mean, target}, {{grad_mean, mean_wanted}}, {logvar});
    const Tensor columns = at::empty({rows.extent.D}, grad.options().dtype(at::kDouble));
    kernels->gaussian_nll_backward_columns(rows.extent, rows.upstream(grad), rows.input(0),
                                           rows.target(1), rows.shared(0), rows.output(0),
                                           sums_of(columns));
    rows.finish();
    return sum_to_shape(rows.by_event(columns), logvar.sizes());
  }
  int64_t shared_dims = 0;
  while (shared_dims < event && (logvar.dim() <= shared_dims || logvar.size(-1 - shared_dims) == 1))
    ++shared_dims;
  const bool by_rows = shared_dims > 0 || logvar.numel() == 1;
  const Tensor elements = at::empty(by_rows ? at::IntArrayRef{0} : mean.sizes(), grad.options());
  if (!by_rows || mean_wanted) {
    Rows rows(mean, event, RowOrder::any, {mean, target},
              {{grad_mean, mean_wanted}, {elements, !by_rows}}, {logvar});
    kernels->gaussian_nll_backward(rows.extent, rows.upstream(grad), rows.input(0), rows.target(1),
                                   rows.shared(0), nullptr, rows.output(0), rows.output(1));
    rows.finish();
  }
  return by_rows ? logvar_grad_by_rows(kernels, grad, mean, target, logvar, shared_dims)
                 : sum_to_shape(elements, logvar.sizes());
}

}  // namespace

Tensor gaussian_nll_forward(const Tensor& mean, const Tensor& target, const MaybeTensor& logvar,
                            const MaybeTensor& sigma, double sigma_value) {
  const char* op = "fastvae.gaussian_nll";
  const bool has_samples = check_samples(op, "mean", mean, target);
  check_spread(op, mean, logvar, sigma, sigma_value);
  Tensor out = empty(mean.sym_sizes().slice(0, has_samples ? 2 : 1),
                     like(mean, sum_dtype({mean, target, logvar})));
  if (out.is_meta() || out.numel() == 0) return out;
  const KernelsFor kernels(mean);
  const int64_t event = target.dim() - 1;
  if (logvar.has_value()) {
    const Rows rows(mean, event, RowOrder::any, {mean, target}, {}, {*logvar});
    kernels->gaussian_nll(rows.extent, rows.input(0), rows.target(1), rows.shared(0), nullptr,
                          sums_of(out));
  } else {
    const Rows rows(mean, event, RowOrder::any, {mean, target});
    const Spread spread = spread_of(sigma, sigma_value, out.scalar_type());
    kernels->gaussian_nll(rows.extent, rows.input(0), rows.target(1), {spread.logvar},
                          &spread.inverse, sums_of(out));
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_nll_backward(
    const Tensor& grad, const Tensor& mean, const Tensor& target, const MaybeTensor& logvar,
    const MaybeTensor& sigma, double sigma_value, std::array<bool, 4> mask) {
  Tensor grad_mean = grad_like(mean, mask[0]);
  Tensor grad_target = grad_like(target, mask[1]);
  Tensor grad_logvar = grad_like(logvar.has_value() ? *logvar : mean, mask[2]);
  Tensor grad_sigma = grad_like(sigma.has_value() ? *sigma : mean, mask[3]);
  const auto result = std::make_tuple(grad_mean, grad_target, grad_logvar, grad_sigma);
  if (is_done(mean, grad_target, mask[1])) {
    for (const Tensor& t : {grad_logvar, grad_sigma})  // summed over nothing
      if (!t.is_meta()) t.zero_();
    return result;
  }
  const KernelsFor kernels(mean);
  const int64_t event = target.dim() - 1;
  Spread spread;
  if (!logvar.has_value()) spread = spread_of(sigma, sigma_value, grad.scalar_type());
  const Input* inverse = logvar.has_value() ? nullptr : &spread.inverse;
  const c10::SmallVector<Tensor, 1> shared(logvar.has_value() ? 1 : 0, logvar.value_or(Tensor()));
  const auto logvar_of = [&](const Rows& rows) { return inverse ? Shared() : rows.shared(0); };
  const bool is_shared = mask[2] && logvar->sizes() != mean.sizes();
  if (is_shared) {
    grad_logvar.copy_(shared_logvar_grad(kernels, grad, mean, target, *logvar, grad_mean, mask[0]));
  } else if (mask[0] || mask[2]) {
    Rows rows(mean, event, RowOrder::any, {mean, target},
              {{grad_mean, mask[0]}, {grad_logvar, mask[2]}}, shared);
    kernels->gaussian_nll_backward(rows.extent, rows.upstream(grad), rows.input(0), rows.target(1),
                                   logvar_of(rows), inverse, rows.output(0), rows.output(1));
    rows.finish();
  }
  if (mask[1]) {
    Rows rows(mean, event, RowOrder::any, {mean, target}, {{grad_target, true}}, shared);
    kernels->gaussian_nll_backward_target(rows.extent, rows.upstream(grad), rows.input(0),
                                          rows.target(1), logvar_of(rows), inverse, rows.output(0));
    rows.finish();
  }
  if (mask[3]) {
    const Rows rows(mean, event, RowOrder::any, {mean, target});
    const Tensor per_row = at::empty(grad.sizes(), grad.options());
    kernels->gaussian_nll_grad_log_sigma(rows.extent, rows.input(0), rows.target(1), spread.inverse,
                                         sums_of(per_row));
    grad_sigma.copy_(per_row.mul_(grad).sum().mul_(spread.inverse_tensor));
  }
  return result;
}

namespace {

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
      if (wanted[2])
        grad_logvar = as_input(at::sum_to(by_log_sigma * 0.5, logvar->sym_sizes()), *logvar);
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

}  // namespace

Tensor gaussian_nll(const Tensor& mean, const Tensor& target, const MaybeTensor& logvar,
                    const MaybeTensor& sigma, double sigma_value, c10::string_view reduction) {
  return GaussianNLL::apply(mean, target, logvar, sigma, sigma_value,
                            reduction_code("fastvae.gaussian_nll", reduction))[0];
}

}  // namespace fastvae::ops
