#include <ATen/ops/cat.h>

#include "../rows.h"
#include "autograd.h"
#include "results.h"

namespace fastvae::ops {

std::tuple<Tensor, Tensor, Tensor> sample_kl_forward(const Tensor& mu, const Tensor& logvar,
                                                     MaybeGenerator generator,
                                                     const MaybeTensor& /*unique*/) {
  const char* op = "fastvae.sample_kl";
  check_moments(op, mu, logvar);
  check_generator(op, mu, generator);
  const auto dtype = c10::promoteTypes(mu.scalar_type(), logvar.scalar_type());
  Tensor z = empty(mu.sym_sizes(), like(mu, dtype));
  Tensor kl = empty(mu.sym_sizes().slice(0, 1), like(mu, sum_dtype({mu, logvar})));
  const auto eps = draw_normal(kl, generator);
  if (kl.is_meta() || kl.numel() == 0) return {z, kl, eps.key};
  const Rows rows(z, mu.dim() - 1, RowOrder::row_major, {mu, logvar});
  KernelsFor(mu)->sample_kl(rows.extent, rows.input(0), rows.input(1), eps.numbers, rows.output(z),
                            sums_of(kl));
  return {z, kl, eps.key};
}

std::pair<Tensor, Tensor> halves(const Tensor& moments) {
  TORCH_CHECK_VALUE(
      moments.dim() >= 2 && moments.sym_size(1) % 2 == 0,
      "fastvae.sample_kl_packed: moments must be [B, 2L] or [B, 2C, *E], with an even "
      "dimension 1, got ",
      moments.sym_sizes());
  const c10::SymInt half = moments.sym_size(1) / 2;
  return {moments.narrow_symint(1, 0, half), moments.narrow_symint(1, half, half)};
}

namespace {

void write_sample_kl_grads(const MaybeTensor& grad_z, const MaybeTensor& grad_kl, const Tensor& mu,
                           const Tensor& logvar, const Tensor& key, std::array<bool, 2> mask,
                           const Tensor& grad_mu, const Tensor& grad_logvar) {
  if (mu.is_meta() || mu.numel() == 0) return;
  const KernelsFor kernels(mu);
  // Of a result that nobody used, the gradient is not 0 times the derivative, which may be
  // infinite.
  if (!grad_z.has_value()) {
    const Rows rows(mu, mu.dim() - 1, RowOrder::row_major, {mu, logvar});
    kernels->gaussian_kl_backward(rows.extent, grad_kl ? rows.upstream(*grad_kl) : PerRow(),
                                  rows.input(0), rows.input(1), rows.output(grad_mu, mask[0]),
                                  rows.output(grad_logvar, mask[1]));
    return;
  }
  const Rows rows(mu, mu.dim() - 1, RowOrder::row_major, {mu, logvar, *grad_z});
  const Output to_mu = rows.output(grad_mu, mask[0]), to_logvar = rows.output(grad_logvar, mask[1]);
  if (grad_kl.has_value())
    kernels->sample_kl_backward(rows.extent, rows.input(2), rows.upstream(*grad_kl), rows.input(0),
                                rows.input(1), normal_input(key), to_mu, to_logvar);
  else
    kernels->reparameterize_backward(rows.extent, rows.input(2), rows.input(1), normal_input(key),
                                     to_mu, to_logvar);
}

}  // namespace

std::tuple<Tensor, Tensor> sample_kl_backward(const MaybeTensor& grad_z, const MaybeTensor& grad_kl,
                                              const Tensor& mu, const Tensor& logvar,
                                              const Tensor& key, std::array<bool, 2> mask) {
  Tensor grad_mu = row_major_grad(mu, mu.scalar_type(), mask[0]);
  Tensor grad_logvar = row_major_grad(logvar, logvar.scalar_type(), mask[1]);
  write_sample_kl_grads(grad_z, grad_kl, mu, logvar, key, mask, grad_mu, grad_logvar);
  return {grad_mu, grad_logvar};
}

Tensor sample_kl_packed_backward(const MaybeTensor& grad_z, const MaybeTensor& grad_kl,
                                 const Tensor& moments, const Tensor& key) {
  Tensor grad = row_major_grad(moments, moments.scalar_type(), true);
  const auto [mu, logvar] = halves(moments);
  const auto [grad_mu, grad_logvar] = halves(grad);
  write_sample_kl_grads(grad_z, grad_kl, mu, logvar, key, {true, true}, grad_mu, grad_logvar);
  return grad;
}

namespace {

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

}  // namespace

std::tuple<Tensor, Tensor> sample_kl(const Tensor& mu, const Tensor& logvar,
                                     MaybeGenerator generator) {
  const variable_list out = SampleKL::apply(mu, logvar, generator);
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor> sample_kl_packed(const Tensor& moments, MaybeGenerator generator) {
  const variable_list out = SampleKLPacked::apply(moments, generator);
  return {out[0], out[1]};
}

}  // namespace fastvae::ops
