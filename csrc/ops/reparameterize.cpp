#include "../rows.h"
#include "autograd.h"
#include "results.h"

namespace fastvae::ops {

std::tuple<Tensor, Tensor> reparameterize_forward(const Tensor& mu, const Tensor& logvar,
                                                  std::optional<c10::SymInt> num_samples,
                                                  MaybeGenerator generator,
                                                  const MaybeTensor& /*unique*/) {
  const char* op = "fastvae.reparameterize";
  check_moments(op, mu, logvar);
  check_generator(op, mu, generator);
  TORCH_CHECK_VALUE(!num_samples.has_value() || *num_samples >= 1, op,
                    ": num_samples must be at least 1, got ", *num_samples);
  c10::SymDimVector size(mu.sym_sizes().begin(), mu.sym_sizes().end());
  if (num_samples.has_value()) size.insert(size.begin(), *num_samples);
  const auto dtype = c10::promoteTypes(mu.scalar_type(), logvar.scalar_type());
  Tensor z = empty(size, like(mu, dtype));
  const auto eps = draw_normal(z, generator);
  if (z.is_meta() || z.numel() == 0) return {z, eps.key};
  const Rows rows(z, mu.dim() - 1, RowOrder::row_major, {mu, logvar});
  KernelsFor(z)->reparameterize(rows.extent, rows.input(0), rows.input(1), eps.numbers,
                                rows.output(z));
  return {z, eps.key};
}

std::tuple<Tensor, Tensor> reparameterize_backward(const Tensor& grad_z, const Tensor& logvar,
                                                   const Tensor& key, std::array<bool, 2> mask) {
  Tensor grad_mu = row_major_grad(logvar, grad_z.scalar_type(), mask[0]);
  Tensor grad_logvar = row_major_grad(logvar, logvar.scalar_type(), mask[1]);
  if (logvar.is_meta() || logvar.numel() == 0) return {grad_mu, grad_logvar};
  const Rows rows(grad_z, logvar.dim() - 1, RowOrder::row_major, {grad_z, logvar});
  KernelsFor(logvar)->reparameterize_backward(rows.extent, rows.input(0), rows.input(1),
                                              normal_input(key), rows.output(grad_mu, mask[0]),
                                              rows.output(grad_logvar, mask[1]));
  return {grad_mu, grad_logvar};
}

Tensor normal(const Tensor& key, c10::SymIntArrayRef size, at::ScalarType dtype) {
  Tensor out = empty(size, like(key, dtype));
  if (out.is_meta() || out.numel() == 0) return out;
  const Rows rows(out, out.dim(), RowOrder::row_major, {});
  Input zero;
  if (dtype == at::kDouble) zero.dtype = Dtype::f64;
  KernelsFor(out)->reparameterize(rows.extent, zero, zero, normal_input(key), rows.output(out));
  return out;
}

Tensor sample_grad_logvar(const Tensor& grad_z, const Tensor& logvar, const Tensor& key,
                          bool has_samples) {
  const auto dtype = grad_z.scalar_type();
  const Tensor eps = call<normal>("fastvae::normal", key, grad_z.sym_sizes(), dtype);
  return fold(grad_z * eps, has_samples) * (logvar.to(dtype) * 0.5).exp() * 0.5;
}

namespace {

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

}  // namespace

Tensor reparameterize(const Tensor& mu, const Tensor& logvar,
                      std::optional<c10::SymInt> num_samples, MaybeGenerator generator) {
  return Reparameterize::apply(mu, logvar, num_samples, generator)[0];
}

}  // namespace fastvae::ops
