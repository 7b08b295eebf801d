#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>

#include "../rows.h"
#include "autograd.h"
#include "results.h"

namespace fastvae::ops {
namespace {

void check_prior(const char* op, const Tensor& mu, const MaybeTensor& prior_mu,
                 const MaybeTensor& prior_logvar) {
  TORCH_CHECK_VALUE(prior_mu.has_value() == prior_logvar.has_value(), op,
                    ": prior_mu and prior_logvar come together, got only ",
                    prior_mu.has_value() ? "prior_mu" : "prior_logvar");
  if (!prior_mu.has_value()) return;
  check_floating(op, "prior_mu", *prior_mu);
  check_floating(op, "prior_logvar", *prior_logvar);
  check_shared(op, "mu", mu, "prior_mu", *prior_mu);
  check_shared(op, "mu", mu, "prior_logvar", *prior_logvar);
  check_same_device(op, "mu", mu, "prior_mu", *prior_mu);
  check_same_device(op, "mu", mu, "prior_logvar", *prior_logvar);
}

}  // namespace

Tensor gaussian_kl_forward(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                           const MaybeTensor& prior_logvar) {
  const char* op = "fastvae.gaussian_kl";
  check_moments(op, mu, logvar);
  check_prior(op, mu, prior_mu, prior_logvar);
  Tensor kl =
      empty(mu.sym_sizes().slice(0, 1), like(mu, sum_dtype({mu, logvar, prior_mu, prior_logvar})));
  if (kl.is_meta() || kl.numel() == 0) return kl;
  const KernelsFor kernels(mu);
  if (prior_mu.has_value()) {
    const Rows rows(mu, mu.dim() - 1, RowOrder::any, {mu, logvar}, {}, {*prior_mu, *prior_logvar});
    kernels->gaussian_kl_prior(rows.extent, rows.input(0), rows.input(1), rows.shared(0),
                               rows.shared(1), sums_of(kl));
  } else {
    const Rows rows(mu, mu.dim() - 1, RowOrder::any, {mu, logvar});
    kernels->gaussian_kl(rows.extent, rows.input(0), rows.input(1), sums_of(kl));
  }
  return kl;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_backward(
    const Tensor& grad, const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
    const MaybeTensor& prior_logvar, double weight, bool mean, std::array<bool, 4> mask) {
  const Tensor& prior_mu_like = prior_mu.has_value() ? *prior_mu : mu;
  const Tensor& prior_logvar_like = prior_logvar.has_value() ? *prior_logvar : logvar;
  Tensor grad_mu = grad_like(mu, mask[0]);
  Tensor grad_logvar = grad_like(logvar, mask[1]);
  Tensor grad_prior_mu = grad_like(prior_mu_like, mask[2]);
  Tensor grad_prior_logvar = grad_like(prior_logvar_like, mask[3]);
  const auto result = std::make_tuple(grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar);
  if (mu.is_meta()) return result;
  if (mu.numel() == 0) {  // what a shared prior is summed over
    grad_prior_mu.zero_();
    grad_prior_logvar.zero_();
    return result;
  }
  const KernelsFor kernels(mu);
  if (mean) weight /= static_cast<double>(mu.size(0));

  const int64_t event = mu.dim() - 1;
  if (prior_mu.has_value() && (mask[2] || mask[3]) && same_for_all_rows(*prior_mu, event) &&
      same_for_all_rows(*prior_logvar, event)) {
    Rows rows(mu, event, RowOrder::any, {mu, logvar}, {{grad_mu, mask[0]}, {grad_logvar, mask[1]}},
              {*prior_mu, *prior_logvar});
    const auto columns = [&](bool wanted) {
      return at::empty({wanted ? rows.extent.D : 0}, like(mu, at::kDouble));
    };
    const Tensor by_mu = columns(mask[2]), by_logvar = columns(mask[3]);
    kernels->gaussian_kl_prior_backward_columns(
        rows.extent, rows.upstream(grad, weight), rows.input(0), rows.input(1), rows.shared(0),
        rows.shared(1), rows.output(0), rows.output(1), mask[2] ? sums_of(by_mu) : Sums(),
        mask[3] ? sums_of(by_logvar) : Sums());
    rows.finish();
    if (mask[2]) grad_prior_mu.copy_(sum_to_shape(rows.by_event(by_mu), prior_mu->sizes()));
    if (mask[3])
      grad_prior_logvar.copy_(sum_to_shape(rows.by_event(by_logvar), prior_logvar->sizes()));
  } else if (prior_mu.has_value()) {
    // A gradient that is not of each element is summed of what is.
    const auto elements = [&](const Tensor& prior, const Tensor& grad_prior, bool wanted) {
      return wanted && prior.sizes() != mu.sizes() ? at::empty(mu.sizes(), grad.options())
                                                   : grad_prior;
    };
    const Tensor by_mu = elements(*prior_mu, grad_prior_mu, mask[2]);
    const Tensor by_logvar = elements(*prior_logvar, grad_prior_logvar, mask[3]);
    Rows rows(mu, event, RowOrder::any, {mu, logvar},
              {{grad_mu, mask[0]}, {grad_logvar, mask[1]}, {by_mu, mask[2]}, {by_logvar, mask[3]}},
              {*prior_mu, *prior_logvar});
    kernels->gaussian_kl_prior_backward(
        rows.extent, rows.upstream(grad, weight), rows.input(0), rows.input(1), rows.shared(0),
        rows.shared(1), rows.output(0), rows.output(1), rows.output(2), rows.output(3));
    rows.finish();
    if (!by_mu.is_same(grad_prior_mu)) grad_prior_mu.copy_(sum_to_shape(by_mu, prior_mu->sizes()));
    if (!by_logvar.is_same(grad_prior_logvar))
      grad_prior_logvar.copy_(sum_to_shape(by_logvar, prior_logvar->sizes()));
  } else {
    Rows rows(mu, mu.dim() - 1, RowOrder::any, {mu, logvar},
              {{grad_mu, mask[0]}, {grad_logvar, mask[1]}});
    kernels->gaussian_kl_backward(rows.extent, rows.upstream(grad, weight), rows.input(0),
                                  rows.input(1), rows.output(0), rows.output(1));
    rows.finish();
  }
  return result;
}

namespace {

// e^x - 1, whose derivative is e^x: torch's own has e^x - 1 + 1, which is 0 where e^x is small.
struct ExpLessOne : Function<ExpLessOne> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    ctx->save_for_backward({x});
    return x.expm1();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {grads[0] * ctx->get_saved_variables()[0].exp()};
  }
};

}  // namespace

MomentGrads gaussian_kl_grads(const Tensor& grad, const Tensor& mu, const Tensor& logvar,
                              const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar) {
  const auto dtype = grad.scalar_type();
  const Tensor g = beside_event(grad, mu.dim() - 1);
  const Tensor lv = logvar.to(dtype);
  if (!prior_mu.has_value())
    return {g * mu.to(dtype), g * ExpLessOne::apply(lv) * 0.5, Tensor(), Tensor()};
  const Tensor plv = prior_logvar->to(dtype);
  const Tensor difference = mu.to(dtype) - prior_mu->to(dtype);
  const Tensor whitened = difference * (-plv).exp();
  const Tensor ratio_less_one = ExpLessOne::apply(lv - plv);
  return {
      g * whitened, g * ratio_less_one * 0.5, at::sum_to(-(g * whitened), prior_mu->sym_sizes()),
      at::sum_to(g * (ratio_less_one + difference * whitened) * -0.5, prior_logvar->sym_sizes())};
}

namespace {

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

}  // namespace

Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                   const MaybeTensor& prior_logvar, c10::string_view reduction) {
  return GaussianKL::apply(mu, logvar, prior_mu, prior_logvar,
                           reduction_code("fastvae.gaussian_kl", reduction))[0];
}

}  // namespace fastvae::ops
