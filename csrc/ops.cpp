#include "ops.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_assert_async.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>

#include <cmath>

#include "memory.h"
#include "rows.h"

namespace fastvae::ops {
namespace {

// The checks and the allocation of every operator run on meta tensors too: under torch.compile the
// same bad input gets the same error.

at::TensorOptions like(const Tensor& t, at::ScalarType dtype) { return t.options().dtype(dtype); }

Tensor empty(c10::SymIntArrayRef size, const at::TensorOptions& options) {
  if (options.device().is_cpu()) {
    const auto known = C10_AS_INTARRAYREF_SLOW(size);
    if (c10::multiply_integers(known) * options.dtype().itemsize() >= kLargeResult)
      return at::detail::empty_generic(known, recycling_allocator(),
                                       c10::DispatchKeySet(c10::DispatchKey::CPU),
                                       c10::typeMetaToScalarType(options.dtype()), std::nullopt);
  }
  return at::empty_symint(size, options);
}

// A gradient of the shape and order of `input`, or nothing.
Tensor grad_like(const Tensor& input, bool wanted) {
  if (!wanted) return at::empty({0}, input.options());
  if (!input.is_cpu() || input.nbytes() < kLargeResult) return at::empty_like(input);
  const Tensor layout = at::empty_like(input, input.options().device(at::kMeta));
  return at::detail::empty_strided_generic(layout.sizes(), layout.strides(), recycling_allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::CPU),
                                           layout.scalar_type());
}

// The same, contiguous: in the order of the noise.
Tensor row_major_grad(const Tensor& input, at::ScalarType dtype, bool wanted) {
  return wanted ? empty(input.sym_sizes(), like(input, dtype)) : at::empty({0}, like(input, dtype));
}

// Whether there is nothing to run a kernel on: traced, or without elements. What is summed over no
// samples is zero.
bool is_done(const Tensor& elements, const Tensor& grad_target, bool target_wanted) {
  if (elements.is_meta()) return true;
  if (elements.numel() > 0) return false;
  if (target_wanted) grad_target.zero_();
  return true;
}

// The value of a 0-d tensor where it can be had without waiting for a device, else `value`.
double host_value(const MaybeTensor& scalar, double value) {
  return scalar.has_value() && scalar->is_cpu() ? scalar->item<double>() : value;
}

void check_generator(const char* op, const Tensor& input, const MaybeGenerator& generator) {
  TORCH_CHECK_VALUE(!generator.has_value() || !generator->defined() || input.is_meta() ||
                        generator->device().type() == input.device().type(),
                    op, ": generator must be on the device of the input, ", input.device(),
                    ", got one on ", generator->device());
}

void check_moments(const char* op, const Tensor& mu, const Tensor& logvar) {
  check_floating(op, "mu", mu);
  check_floating(op, "logvar", logvar);
  check_batch(op, "mu", mu);
  check_same_shape(op, "mu", mu, "logvar", logvar);
  check_same_device(op, "mu", mu, "logvar", logvar);
}

// logits (or mean) [B, *E] or [K, B, *E] against target [B, *E]; true if there is a K.
bool check_samples(const char* op, const char* name, const Tensor& logits, const Tensor& target) {
  check_floating(op, name, logits);
  check_target(op, target);
  check_batch(op, "target", target);
  check_same_device(op, name, logits, "target", target);
  const auto sizes = logits.sym_sizes();
  const bool has_samples = logits.dim() == target.dim() + 1;
  TORCH_CHECK_VALUE((has_samples ? sizes.slice(1) : sizes) == target.sym_sizes(), op, ": ", name,
                    " must have the shape of target, [B, *E], or [K, B, *E] with samples, got ",
                    name, " ", sizes, " and target ", target.sym_sizes());
  return has_samples;
}

}  // namespace

Reduction parse_reduction(const char* op, c10::string_view name) {
  if (name == "none") return Reduction::none;
  if (name == "mean") return Reduction::mean;
  TORCH_CHECK_VALUE(name == "sum", op, ": reduction must be 'none', 'mean' or 'sum', got '", name,
                    "'");
  return Reduction::sum;
}

Tensor reduce(const Tensor& rows, Reduction reduction) {
  if (reduction == Reduction::none) return rows;
  return reduction == Reduction::mean ? rows.mean() : rows.sum();
}

Tensor target_values(const Tensor& target, at::ScalarType dtype) {
  if (target.scalar_type() == at::kByte) return target.to(dtype).div(255);
  return target.to(dtype);
}

at::ScalarType sum_dtype(std::initializer_list<MaybeTensor> inputs) {
  for (const MaybeTensor& input : inputs)
    if (input.has_value() && input->defined() && input->scalar_type() == at::kDouble)
      return at::kDouble;
  return at::kFloat;
}

// reparameterize

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

// gaussian_kl

namespace {

void check_prior(const char* op, const Tensor& mu, const MaybeTensor& prior_mu,
                 const MaybeTensor& prior_logvar) {
  TORCH_CHECK_VALUE(prior_mu.has_value() == prior_logvar.has_value(), op,
                    ": prior_mu and prior_logvar come together, got only ",
                    prior_mu.has_value() ? "prior_mu" : "prior_logvar");
  if (!prior_mu.has_value()) return;
  check_floating(op, "prior_mu", *prior_mu);
  check_floating(op, "prior_logvar", *prior_logvar);
  check_same_shape(op, "mu", mu, "prior_mu", *prior_mu);
  check_same_shape(op, "mu", mu, "prior_logvar", *prior_logvar);
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
    const Rows rows(mu, mu.dim() - 1, RowOrder::any, {mu, logvar, *prior_mu, *prior_logvar});
    kernels->gaussian_kl_prior(rows.extent, rows.input(0), rows.input(1), rows.input(2),
                               rows.input(3), sums_of(kl));
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
  if (mu.is_meta() || mu.numel() == 0) return result;
  const KernelsFor kernels(mu);
  if (mean) weight /= static_cast<double>(mu.size(0));

  if (prior_mu.has_value()) {
    Rows rows(mu, mu.dim() - 1, RowOrder::any, {mu, logvar, *prior_mu, *prior_logvar},
              {{grad_mu, mask[0]},
               {grad_logvar, mask[1]},
               {grad_prior_mu, mask[2]},
               {grad_prior_logvar, mask[3]}});
    kernels->gaussian_kl_prior_backward(rows.extent, rows.upstream(grad, weight), rows.input(0),
                                        rows.input(1), rows.input(2), rows.input(3), rows.output(0),
                                        rows.output(1), rows.output(2), rows.output(3));
    rows.finish();
  } else {
    Rows rows(mu, mu.dim() - 1, RowOrder::any, {mu, logvar},
              {{grad_mu, mask[0]}, {grad_logvar, mask[1]}});
    kernels->gaussian_kl_backward(rows.extent, rows.upstream(grad, weight), rows.input(0),
                                  rows.input(1), rows.output(0), rows.output(1));
    rows.finish();
  }
  return result;
}

// sample_kl

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

void sample_kl_grads(const MaybeTensor& grad_z, const MaybeTensor& grad_kl, const Tensor& mu,
                     const Tensor& logvar, const Tensor& key, std::array<bool, 2> mask,
                     const Tensor& grad_mu, const Tensor& grad_logvar) {
  if (mu.is_meta() || mu.numel() == 0) return;
  const KernelsFor kernels(mu);
  // An upstream gradient that is not there is 0 everywhere.
  if (!grad_z.has_value()) {
    const Rows rows(mu, mu.dim() - 1, RowOrder::row_major, {mu, logvar});
    kernels->gaussian_kl_backward(rows.extent, grad_kl ? rows.upstream(*grad_kl) : PerRow(),
                                  rows.input(0), rows.input(1), rows.output(grad_mu, mask[0]),
                                  rows.output(grad_logvar, mask[1]));
    return;
  }
  const Rows rows(mu, mu.dim() - 1, RowOrder::row_major, {mu, logvar, *grad_z});
  kernels->sample_kl_backward(rows.extent, rows.input(2),
                              grad_kl ? rows.upstream(*grad_kl) : PerRow(), rows.input(0),
                              rows.input(1), normal_input(key), rows.output(grad_mu, mask[0]),
                              rows.output(grad_logvar, mask[1]));
}

}  // namespace

std::tuple<Tensor, Tensor> sample_kl_backward(const MaybeTensor& grad_z, const MaybeTensor& grad_kl,
                                              const Tensor& mu, const Tensor& logvar,
                                              const Tensor& key, std::array<bool, 2> mask) {
  Tensor grad_mu = row_major_grad(mu, mu.scalar_type(), mask[0]);
  Tensor grad_logvar = row_major_grad(logvar, logvar.scalar_type(), mask[1]);
  sample_kl_grads(grad_z, grad_kl, mu, logvar, key, mask, grad_mu, grad_logvar);
  return {grad_mu, grad_logvar};
}

Tensor sample_kl_packed_backward(const MaybeTensor& grad_z, const MaybeTensor& grad_kl,
                                 const Tensor& moments, const Tensor& key) {
  Tensor grad = row_major_grad(moments, moments.scalar_type(), true);
  const auto [mu, logvar] = halves(moments);
  const auto [grad_mu, grad_logvar] = halves(grad);
  sample_kl_grads(grad_z, grad_kl, mu, logvar, key, {true, true}, grad_mu, grad_logvar);
  return grad;
}

// sigmoid_cross_entropy

namespace {

// Row sums, and in the same pass `scale` times their gradient where grad_logits is defined.
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

}  // namespace

Tensor sigmoid_cross_entropy_forward(const Tensor& logits, const Tensor& target) {
  const bool has_samples = check_samples("fastvae.sigmoid_cross_entropy", "logits", logits, target);
  return sigmoid_cross_entropy_rows(logits, target, has_samples, 1, {});
}

std::tuple<Tensor, Tensor> sigmoid_cross_entropy_with_grad(const Tensor& logits,
                                                           const Tensor& target, bool mean) {
  const bool has_samples = check_samples("fastvae.sigmoid_cross_entropy", "logits", logits, target);
  Tensor grad_logits = grad_like(logits, true);
  double scale = 1;
  if (mean && !logits.is_meta())
    scale /= static_cast<double>(target.size(0) * (has_samples ? logits.size(0) : 1));
  const Tensor rows = sigmoid_cross_entropy_rows(logits, target, has_samples, scale, grad_logits);
  return {rows, grad_logits};
}

void scale_grad(const Tensor& grad, const Tensor& factor) {
  if (grad.is_meta() || grad.numel() == 0) return;
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

// gaussian_nll

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
    check_same_shape(op, "mean", mean, "logvar", *logvar);
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
    const Rows rows(mean, event, RowOrder::any, {mean, target, *logvar});
    kernels->gaussian_nll(rows.extent, rows.input(0), rows.target(1), rows.input(2), nullptr,
                          sums_of(out));
  } else {
    const Rows rows(mean, event, RowOrder::any, {mean, target});
    const Spread spread = spread_of(sigma, sigma_value, out.scalar_type());
    kernels->gaussian_nll(rows.extent, rows.input(0), rows.target(1), spread.logvar,
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
    if (mask[3] && !mean.is_meta()) grad_sigma.zero_();
    return result;
  }
  const KernelsFor kernels(mean);
  const int64_t event = target.dim() - 1;
  Spread spread;
  if (!logvar.has_value()) spread = spread_of(sigma, sigma_value, grad.scalar_type());
  const Input* inverse = logvar.has_value() ? nullptr : &spread.inverse;
  const Tensor& third = logvar.has_value() ? *logvar : mean;
  if (mask[0] || mask[2]) {
    Rows rows(mean, event, RowOrder::any, {mean, target, third},
              {{grad_mean, mask[0]}, {grad_logvar, mask[2]}});
    kernels->gaussian_nll_backward(rows.extent, rows.upstream(grad), rows.input(0), rows.target(1),
                                   rows.input(2), inverse, rows.output(0), rows.output(1));
    rows.finish();
  }
  if (mask[1]) {
    Rows rows(mean, event, RowOrder::any, {mean, target, third}, {{grad_target, true}});
    kernels->gaussian_nll_backward_target(rows.extent, rows.upstream(grad), rows.input(0),
                                          rows.target(1), rows.input(2), inverse, rows.output(0));
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

// elbo_loss

std::tuple<Tensor, Tensor, Tensor, Tensor> elbo_loss_forward(
    const Tensor& logits, const Tensor& target, const Tensor& mu, const Tensor& logvar,
    const MaybeTensor& beta, double beta_value, c10::string_view reduction_name, bool with_grad) {
  const char* op = "fastvae.elbo_loss";
  const Reduction reduction = parse_reduction(op, reduction_name);
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
  const double known_beta = host_value(beta, beta_value);
  TORCH_CHECK_VALUE(std::isfinite(known_beta), op, ": beta must be finite, got ", known_beta);

  Tensor grad_logits = grad_like(logits, with_grad);
  double scale = 1;
  if (with_grad && !logits.is_meta()) {
    if (has_samples) scale /= static_cast<double>(logits.size(0));
    if (reduction == Reduction::mean) scale /= static_cast<double>(target.size(0));
  }
  Tensor reconstruction = sigmoid_cross_entropy_rows(logits, target, has_samples, scale,
                                                     with_grad ? grad_logits : Tensor());
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

// binarize

namespace {

void check_index(const char* op, const Tensor& index, int64_t rows) {
  const int64_t* numbers = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.size(0); ++i) {
    const int64_t number = numbers[i * index.stride(0)];
    TORCH_CHECK_VALUE(0 <= number && number < rows, op, ": index must lie in [0, ", rows,
                      "), the number of images, got ", number);
  }
}

}  // namespace

Tensor binarize_forward(const Tensor& images, const MaybeTensor& index, at::ScalarType dtype,
                        MaybeGenerator generator, const MaybeTensor& /*unique*/) {
  const char* op = "fastvae.binarize";
  TORCH_CHECK_VALUE(images.scalar_type() == at::kByte || is_supported_floating(images), op,
                    ": images must be uint8 or floating point, got ", images.scalar_type());
  TORCH_CHECK_VALUE(dtype == at::kBool || is_supported_floating(dtype), op,
                    ": dtype must be bool, float32, float64, bfloat16 or float16, got ", dtype);
  check_batch(op, "images", images);
  check_generator(op, images, generator);
  c10::SymDimVector sizes(images.sym_sizes());
  if (index.has_value()) {
    TORCH_CHECK_VALUE(index->dim() == 1 && index->scalar_type() == at::kLong, op,
                      ": index must be int64 [B], got ", index->scalar_type(), " ",
                      index->sym_sizes());
    check_same_device(op, "images", images, "index", *index);
    sizes[0] = index->sym_size(0);
    if (index->is_cpu()) check_index(op, *index, images.size(0));
  }
  Tensor out = empty(sizes, like(images, dtype));
  const auto uniform = draw_uniform(out, generator);
  if (out.is_meta() || out.numel() == 0) return out;

  const int64_t event_dims = images.dim() - 1;
  Tensor source = images, numbers;
  if (index.has_value()) {
    numbers = index->contiguous();
    // Rows that must be brought into order are copied: those of the index alone.
    if (!is_row_major(images, event_dims)) {
      source = images.index_select(0, numbers);
      numbers.reset();
    }
  }
  const Rows rows(source, event_dims, RowOrder::row_major, {source});
  Gathered probability{rows.input(0)};
  if (numbers.defined()) {
    probability.kind = Input::Kind::gathered;
    probability.index = numbers.const_data_ptr<int64_t>();
    probability.rows = images.size(0);
  }
  const Extent extent{1, out.size(0), rows.extent.D};
  const Tensor invalid = at::empty({extent.B}, like(images, sum_dtype({images})));
  KernelsFor(images)->binarize(extent, probability, uniform.numbers, rows.output(out),
                               sums_of(invalid));
  if (images.scalar_type() == at::kByte) return out;
  if (invalid.is_cpu()) {
    const double count = invalid.sum().item<double>();
    TORCH_CHECK_VALUE(count == 0, op, ": floating-point images must lie in [0, 1], got ", count,
                      " values that do not");
  } else {  // as torch.bernoulli: the GPU stops, and nothing waits for it here
    at::_assert_async(invalid.sum().eq(0),
                      "fastvae.binarize: floating-point images must lie in [0, 1]");
  }
  return out;
}

}  // namespace fastvae::ops
