// The operators' schemas and their implementations. Public operators are composites: their autograd
// Functions (ops/NAME.cpp) call the parts NAME_forward and NAME_backward, and tracing sees each of
// these parts.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace {

const std::vector<at::Tag> pure = {at::Tag::pt2_compliant_tag};
// Noise drawn from a generator: not a pure function of the arguments.
const std::vector<at::Tag> seeded = {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded};

std::string cpu_capability() { return fastvae::cpu::kernels().name; }

c10::List<bool> set_flush_denormal(const c10::List<bool>& on) {
  TORCH_CHECK_VALUE(!on.empty(), "set_flush_denormal: on must have a value");
  const auto was_on = fastvae::cpu::set_flush_denormal({on.begin(), on.end()});
  c10::List<bool> out;
  for (const bool value : was_on) out.push_back(value);
  return out;
}

}  // namespace

TORCH_LIBRARY(fastvae, m) {
  namespace ops = fastvae::ops;

  m.def(
      "reparameterize(Tensor mu, Tensor logvar, SymInt? num_samples=None, "
      "Generator? generator=None) -> Tensor",
      seeded);
  m.def(
      "gaussian_kl(Tensor mu, Tensor logvar, Tensor? prior_mu=None, Tensor? prior_logvar=None, "
      "str reduction='none') -> Tensor",
      pure);
  m.def("sample_kl_packed(Tensor moments, Generator? generator=None) -> (Tensor z, Tensor kl)",
        seeded);
  m.def("sample_kl(Tensor mu, Tensor logvar, Generator? generator=None) -> (Tensor z, Tensor kl)",
        seeded);
  m.def(
      "nll(str likelihood, Tensor a, Tensor target, str reduction='none', "
      "bool check_target=False, Tensor? b=None, Tensor? c=None, Tensor? scale=None, "
      "float scale_value=1., Tensor? log_library=None, Tensor? crow_indices=None, "
      "Tensor? col_indices=None) -> Tensor",
      pure);
  m.def(
      "linear_nll(str likelihood, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, "
      "str reduction='none', bool check_target=False, str? activation=None, "
      "Tensor? second_weight=None, Tensor? second_bias=None, Tensor? last=None, "
      "Tensor? log_library=None, Tensor? crow_indices=None, Tensor? col_indices=None) -> Tensor",
      pure);
  m.def(
      "mlp(Tensor x, Tensor[] weights, Tensor?[] biases, str? activation='relu', "
      "ScalarType? dtype=None) -> Tensor",
      pure);
  m.def(
      "elbo_loss(Tensor logits, Tensor target, Tensor mu, Tensor logvar, Tensor? beta, "
      "float beta_value, str reduction='mean', bool check_target=False) "
      "-> (Tensor loss, Tensor reconstruction, Tensor kl)",
      pure);
  m.def(
      "binarize(Tensor images, Generator? generator=None, *, Tensor? index=None, "
      "ScalarType dtype=bool) -> Tensor",
      seeded);

  m.impl("reparameterize", c10::DispatchKey::CompositeImplicitAutograd, ops::reparameterize);
  m.impl("gaussian_kl", c10::DispatchKey::CompositeImplicitAutograd, ops::gaussian_kl);
  m.impl("sample_kl", c10::DispatchKey::CompositeImplicitAutograd, ops::sample_kl);
  m.impl("sample_kl_packed", c10::DispatchKey::CompositeImplicitAutograd, ops::sample_kl_packed);
  m.impl("nll", c10::DispatchKey::CompositeImplicitAutograd, ops::nll);
  m.impl("linear_nll", c10::DispatchKey::CompositeImplicitAutograd, ops::linear_nll);
  m.impl("mlp", c10::DispatchKey::CompositeImplicitAutograd, ops::mlp);
  m.impl("elbo_loss", c10::DispatchKey::CompositeImplicitAutograd, ops::elbo_loss);
  m.impl("binarize", c10::DispatchKey::CompositeImplicitAutograd, ops::binarize);

  m.def(
      "reparameterize_forward(Tensor mu, Tensor logvar, SymInt? num_samples, "
      "Generator? generator, Tensor? unique=None) -> (Tensor z, Tensor key)",
      seeded);
  m.def(
      "reparameterize_backward(Tensor grad_z, Tensor logvar, Tensor key, bool[2] mask) "
      "-> (Tensor, Tensor)",
      pure);
  m.def("normal(Tensor key, SymInt[] size, ScalarType dtype) -> Tensor", pure);
  m.def(
      "gaussian_kl_forward(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar) "
      "-> Tensor",
      pure);
  m.def(
      "gaussian_kl_backward(Tensor grad, Tensor mu, Tensor logvar, Tensor? prior_mu, "
      "Tensor? prior_logvar, float weight, bool mean, bool[4] mask) -> (Tensor, Tensor, Tensor, "
      "Tensor)",
      pure);
  m.def(
      "sample_kl_forward(Tensor mu, Tensor logvar, Generator? generator, Tensor? unique=None) "
      "-> (Tensor z, Tensor kl, Tensor key)",
      seeded);
  m.def(
      "sample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor key, "
      "bool[2] mask) -> (Tensor, Tensor)",
      pure);
  m.def(
      "sample_kl_packed_backward(Tensor? grad_z, Tensor? grad_kl, Tensor moments, Tensor key) "
      "-> Tensor",
      pure);
  m.def(
      "nll_forward(str likelihood, Tensor a, Tensor? b, Tensor? c, Tensor target, Tensor? scale, "
      "float scale_value, bool of_shares, Tensor? log_library, Tensor? crow_indices, "
      "Tensor? col_indices, bool check_target=False) -> Tensor",
      pure);
  m.def(
      "nll_with_grads(str likelihood, Tensor a, Tensor? b, Tensor? c, Tensor target, "
      "Tensor? scale, float scale_value, bool of_shares, Tensor? log_library, "
      "Tensor? crow_indices, Tensor? col_indices, bool mean, bool[4] mask, "
      "bool check_target=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      pure);
  m.def(
      "nll_backward(Tensor grad, str likelihood, Tensor a, Tensor? b, Tensor? c, Tensor target, "
      "Tensor? scale, float scale_value, bool of_shares, Tensor? log_library, "
      "Tensor? crow_indices, Tensor? col_indices, bool[6] mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      pure);
  m.def(
      "nll_backward_twice(Tensor grad, str likelihood, Tensor a, Tensor? b, Tensor? c, "
      "Tensor target, Tensor? direction_a, Tensor? direction_b, Tensor? direction_c, "
      "Tensor? direction_target) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      pure);
  m.def("scale_grad(Tensor(a!) grad, Tensor factor) -> ()", pure);
  m.def(
      "linear_nll_forward(str likelihood, Tensor hidden, Tensor weight, Tensor? bias, "
      "Tensor target, Tensor? second_weight, Tensor? second_bias, Tensor? last, "
      "Tensor? log_library, Tensor? crow_indices, Tensor? col_indices, int activation, bool keep, "
      "bool check_target=False) -> (Tensor, Tensor)",
      pure);
  m.def(
      "linear_nll_with_grads(str likelihood, Tensor hidden, Tensor weight, Tensor? bias, "
      "Tensor target, Tensor? second_weight, Tensor? second_bias, Tensor? last, "
      "Tensor? log_library, Tensor? crow_indices, Tensor? col_indices, int activation, bool mean, "
      "bool[8] mask, bool check_target=False) -> (Tensor, Tensor[])",
      pure);
  m.def(
      "linear_nll_backward(Tensor grad, str likelihood, Tensor hidden, Tensor weight, "
      "Tensor? bias, Tensor target, Tensor? second_weight, Tensor? second_bias, Tensor? last, "
      "Tensor? log_library, Tensor? crow_indices, Tensor? col_indices, int activation, "
      "Tensor? logits, bool[8] mask) -> Tensor[]",
      pure);
  m.def(
      "mlp_forward(Tensor x, Tensor[] weights, Tensor?[] biases, int activation, ScalarType dtype, "
      "bool keep, bool padded) -> (Tensor, Tensor[], Tensor[])",
      pure);
  m.def(
      "mlp_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor[] taken, Tensor[] rounded, "
      "int activation, bool[] mask) -> Tensor[]",
      pure);
  m.def(
      "elbo_loss_forward(Tensor logits, Tensor target, Tensor mu, Tensor logvar, Tensor? beta, "
      "float beta_value, str reduction, bool with_grad, bool check_target=False) "
      "-> (Tensor, Tensor, Tensor, Tensor)",
      pure);
  m.def(
      "binarize_forward(Tensor images, Tensor? index, ScalarType dtype, Generator? generator, "
      "Tensor? unique=None) -> Tensor",
      seeded);
  m.def(
      "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor[] steps, Tensor? lr_tensor, float lr, float beta1, "
      "float beta2, float eps, float weight_decay, bool maximize) -> ()",
      pure);

  // Of no tensor: the instruction sets that are compiled, lowest first, and the one in use.
  m.def("cpu_capabilities() -> str[]", fastvae::cpu::compiled);
  m.def("cpu_capability() -> str", cpu_capability);
  // See cpu/parallel.h.
  m.def("set_flush_denormal(bool[] on) -> bool[]", set_flush_denormal);
}

namespace {

// The same functions serve every device; they ask KernelsFor(tensor) for its kernels, and a build
// without them says so.
void implement(torch::Library& m) {
  namespace ops = fastvae::ops;
  m.impl("reparameterize_forward", ops::reparameterize_forward);
  m.impl("reparameterize_backward", ops::reparameterize_backward);
  m.impl("normal", ops::normal);
  m.impl("gaussian_kl_forward", ops::gaussian_kl_forward);
  m.impl("gaussian_kl_backward", ops::gaussian_kl_backward);
  m.impl("sample_kl_forward", ops::sample_kl_forward);
  m.impl("sample_kl_backward", ops::sample_kl_backward);
  m.impl("sample_kl_packed_backward", ops::sample_kl_packed_backward);
  m.impl("nll_forward", ops::nll_forward);
  m.impl("nll_with_grads", ops::nll_with_grads);
  m.impl("nll_backward", ops::nll_backward);
  m.impl("nll_backward_twice", ops::nll_backward_twice);
  m.impl("scale_grad", ops::scale_grad);
  m.impl("linear_nll_forward", ops::linear_nll_forward);
  m.impl("linear_nll_with_grads", ops::linear_nll_with_grads);
  m.impl("linear_nll_backward", ops::linear_nll_backward);
  m.impl("mlp_forward", ops::mlp_forward);
  m.impl("mlp_backward", ops::mlp_backward);
  m.impl("elbo_loss_forward", ops::elbo_loss_forward);
  m.impl("binarize_forward", ops::binarize_forward);
  m.impl("adam_", ops::adam_);
}

}  // namespace

// Asked for a derivative by themselves, the parts below autograd refuse: without this torch would
// warn and give none.
TORCH_LIBRARY_IMPL(fastvae, Autograd, m) {
  for (const char* name : {"reparameterize_forward",
                           "reparameterize_backward",
                           "normal",
                           "gaussian_kl_forward",
                           "gaussian_kl_backward",
                           "sample_kl_forward",
                           "sample_kl_backward",
                           "sample_kl_packed_backward",
                           "nll_forward",
                           "nll_with_grads",
                           "nll_backward",
                           "nll_backward_twice",
                           "scale_grad",
                           "linear_nll_forward",
                           "linear_nll_with_grads",
                           "linear_nll_backward",
                           "mlp_forward",
                           "mlp_backward",
                           "elbo_loss_forward",
                           "binarize_forward",
                           "adam_"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

// Under autocast the layer is what torch.nn.functional.linear is there: a product in the lower
// precision. The other operators take every dtype as it is.
template <c10::DeviceType device>
at::Tensor autocast_linear(
    c10::string_view likelihood, const at::Tensor& hidden, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias, const at::Tensor& target, c10::string_view reduction,
    bool check_target, std::optional<c10::string_view> activation,
    const std::optional<at::Tensor>& second_weight, const std::optional<at::Tensor>& second_bias,
    const std::optional<at::Tensor>& last, const std::optional<at::Tensor>& log_library,
    const std::optional<at::Tensor>& crow_indices, const std::optional<at::Tensor>& col_indices) {
  namespace autocast = at::autocast;
  const auto dtype = autocast::get_autocast_dtype(device);
  const c10::impl::ExcludeDispatchKeyGuard guard(
      autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto cast = [&](const auto& t) { return autocast::cached_cast(dtype, t, device); };
  return fastvae::ops::linear_nll(likelihood, cast(hidden), cast(weight), cast(bias), target,
                                  reduction, check_target, activation, cast(second_weight),
                                  cast(second_bias), last, log_library, crow_indices, col_indices);
}

// Not cached casts: the operator rounds the weights itself, and their gradients stay float32.
template <c10::DeviceType device>
at::Tensor autocast_mlp(const at::Tensor& x, at::TensorList weights,
                        const fastvae::ops::MaybeTensors& biases,
                        std::optional<c10::string_view> activation,
                        std::optional<at::ScalarType> dtype) {
  namespace autocast = at::autocast;
  const c10::impl::ExcludeDispatchKeyGuard guard(
      autocast::get_autocast_dispatch_key_from_device_type(device));
  // Double precision stays, as autocast leaves it everywhere.
  if (!dtype.has_value() && !(weights.size() > 0 && weights[0].scalar_type() == at::kDouble))
    dtype = autocast::get_autocast_dtype(device);
  return fastvae::ops::mlp(x, weights, biases, activation, dtype);
}

TORCH_LIBRARY_IMPL(fastvae, AutocastCPU, m) {
  m.impl("mlp", autocast_mlp<c10::DeviceType::CPU>);
  m.impl("linear_nll", autocast_linear<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(fastvae, AutocastCUDA, m) {
  m.impl("mlp", autocast_mlp<c10::DeviceType::CUDA>);
  m.impl("linear_nll", autocast_linear<c10::DeviceType::CUDA>);
}

TORCH_LIBRARY_IMPL(fastvae, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(fastvae, CUDA, m) { implement(m); }
TORCH_LIBRARY_IMPL(fastvae, Meta, m) { implement(m); }
