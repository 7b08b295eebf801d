// A network of linear layers as one operator: the matrix products are torch's, and between two of
// them there is one pass forward and one backward.
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../rows.h"
#include "autograd.h"
#include "layer.h"
#include "results.h"

namespace fastvae::ops {
namespace {

constexpr const char* kOp = "fastvae.mlp";

void check_mlp(const Tensor& x, at::TensorList weights, at::TensorList biases,
               at::ScalarType dtype) {
  TORCH_CHECK_VALUE(!weights.empty(), kOp, ": weights must hold at least one tensor, got none");
  TORCH_CHECK_VALUE(weights.size() == biases.size(), kOp,
                    ": biases must hold a tensor or None for each weight, got ", biases.size(),
                    " for ", weights.size());
  TORCH_CHECK_VALUE(
      is_supported_floating(x) || x.scalar_type() == at::kByte || x.scalar_type() == at::kBool, kOp,
      ": x must be float32, float64, bfloat16, float16, uint8 or bool, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() >= 1, kOp, ": x must be [..., H], got a 0-d tensor");
  c10::SymInt width = x.sym_size(-1);
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor &weight = weights[i], &bias = biases[i];
    const std::string name = "weights[" + std::to_string(i) + "]";
    check_same_device(kOp, "x", x, name.c_str(), weight);
    check_floating(kOp, name.c_str(), weight);
    TORCH_CHECK_VALUE(weight.scalar_type() == weights[0].scalar_type(), kOp,
                      ": weights must have one dtype, got ", weights[0].scalar_type(), " and, in ",
                      name, ", ", weight.scalar_type());
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.sym_size(1) == width, kOp, ": ", name,
                      " must be [H', ", width, "] to fit ", i == 0 ? "x " : "the weight before it ",
                      i == 0 ? x.sym_sizes() : weights[i - 1].sym_sizes(), ", got ",
                      weight.sym_sizes());
    width = weight.sym_size(0);
    if (!bias.defined()) continue;
    const std::string bias_name = "biases[" + std::to_string(i) + "]";
    check_same_device(kOp, "x", x, bias_name.c_str(), bias);
    TORCH_CHECK_VALUE(bias.dim() == 1 && bias.sym_size(0) == width, kOp, ": ", bias_name,
                      " must be [", width, "] to fit ", name, " ", weight.sym_sizes(), ", got ",
                      bias.sym_sizes());
    TORCH_CHECK_VALUE(bias.scalar_type() == weight.scalar_type(), kOp, ": ", bias_name,
                      " must have the dtype of ", name, ", ", weight.scalar_type(), ", got ",
                      bias.scalar_type());
  }
  TORCH_CHECK_VALUE(is_supported_floating(dtype), kOp,
                    ": products must be in float32, float64, bfloat16 or float16, got ", dtype);
}

c10::SymInt rows_of(const Tensor& x) {
  c10::SymInt rows = 1;
  for (const auto& size : x.sym_sizes().slice(0, x.dim() - 1)) rows = rows * size;
  return rows;
}

// As [N, H], rows of elements side by side.
Tensor as_rows(const Tensor& x) {
  if (x.dim() == 2 && x.stride(1) == 1 && x.stride(0) >= x.size(1)) return x;
  return x.reshape_symint({rows_of(x), x.sym_size(-1)}).contiguous();
}

// cuBLAS has slow kernels for 16-bit operands of sizes that are no multiples of 8. Those of the
// operator's own, and the rounded weights, are then filled up with zeros, which add nothing.
c10::SymInt filled(const c10::SymInt& size, at::ScalarType dtype, bool padded) {
  return padded && c10::elementSize(dtype) == 2 ? (size + 7) / 8 * 8 : size;
}

// The numbers of x [..., H] in `dtype`, [N, H] filled up.
Tensor numbers(const Tensor& x, at::ScalarType dtype, bool padded) {
  const c10::SymInt rows = rows_of(x), width = x.sym_size(-1), whole = filled(width, dtype, padded);
  const auto options = like(x, dtype);
  Tensor out = whole == width ? operand_rows(rows, width, options, padded)
                              : at::zeros_symint({rows, whole}, options);
  if (x.is_meta() || out.sym_numel() == 0) return out;
  const Tensor from = as_rows(x);
  Tensor to = out.narrow_symint(1, 0, width);
  if (dtype == at::kDouble) {  // of inputs in less, loops are in float
    to.copy_(target_values(from, dtype));
    return out;
  }
  const KernelsFor kernels(x);
  Rows loop(from, 1, RowOrder::any, {from}, {{to, true}});
  kernels->convert(loop.extent, loop.target(0), loop.output(0));
  loop.finish();
  return out;
}

// Whether products take x as it is.
bool is_operand(const Tensor& x, at::ScalarType dtype, bool padded) {
  return x.scalar_type() == dtype && filled(x.sym_size(-1), dtype, padded) == x.sym_size(-1);
}

// The weight in `dtype`, filled up.
Tensor operand(const Tensor& weight, at::ScalarType dtype, bool padded) {
  const c10::SymInt outputs = filled(weight.sym_size(0), dtype, padded);
  const c10::SymInt inputs = filled(weight.sym_size(1), dtype, padded);
  if (outputs == weight.sym_size(0) && inputs == weight.sym_size(1)) return weight.to(dtype);
  const Tensor out = at::zeros_symint({outputs, inputs}, like(weight, dtype));
  out.narrow_symint(0, 0, weight.sym_size(0)).narrow_symint(1, 0, weight.sym_size(1)).copy_(weight);
  return out;
}

bool pads(const Tensor& t) { return t.is_cuda(); }

Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

// An empty tensor stands for one that is an input itself.
const Tensor& given_or(const Tensor& kept, const Tensor& input) {
  return kept.dim() == 1 ? input : kept;
}

c10::SymDimVector result_size(const Tensor& x, const Tensor& last) {
  const auto leading = x.sym_sizes().slice(0, x.dim() - 1);
  c10::SymDimVector size(leading.begin(), leading.end());
  size.push_back(last.sym_size(0));
  return size;
}

std::vector<Tensor> tensors_of(const MaybeTensors& list) {
  std::vector<Tensor> tensors;
  for (const std::optional<Tensor> t : list) tensors.push_back(t.value_or(Tensor()));
  return tensors;
}

}  // namespace

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> mlp_forward(
    const Tensor& x, at::TensorList weights, const MaybeTensors& maybe_biases, int64_t activation,
    at::ScalarType dtype, bool keep, bool padded) {
  const std::vector<Tensor> biases = tensors_of(maybe_biases);
  check_mlp(x, weights, biases, dtype);
  const auto options = like(x, dtype);
  const c10::SymInt rows = rows_of(x);
  Tensor a = is_operand(x, dtype, padded) ? x : numbers(x, dtype, padded);
  std::vector<Tensor> taken, rounded;
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool is_last = i + 1 == weights.size();
    Tensor weight = operand(weights[i], dtype, padded);
    if (keep) {
      taken.push_back(a.is_same(x) ? nothing(x) : a);
      rounded.push_back(weight.is_same(weights[i]) ? nothing(weight) : weight);
    }
    if (is_last) weight = weight.narrow_symint(0, 0, weights[i].sym_size(0));
    Tensor next = operand_rows(rows, weight.sym_size(0), options, padded && !is_last);
    if (!x.is_meta()) {
      MaybeTensor bias;
      if (biases[i].defined()) bias = biases[i].to(dtype);
      layer(as_rows(a), weight, bias,
            is_last ? Activation::none : static_cast<Activation>(activation), next);
    }
    a = next;
  }
  return {a.view_symint(result_size(x, weights.back())), taken, rounded};
}

std::vector<Tensor> mlp_backward(const Tensor& grad, const Tensor& x, at::TensorList weights,
                                 at::TensorList taken, at::TensorList rounded, int64_t activation,
                                 const c10::List<bool>& mask) {
  const size_t layers = weights.size();
  const bool wants_x = mask[0];
  std::vector<Tensor> result{grad_like(x, wants_x)};
  for (size_t i = 0; i < layers; ++i) result.push_back(grad_like(weights[i], mask[1 + i]));
  for (size_t i = 0; i < layers; ++i) {
    const bool wanted = mask[1 + layers + i];
    result.push_back(
        at::empty_symint({wanted ? weights[i].sym_size(0) : c10::SymInt(0)}, weights[i].options()));
  }
  if (x.is_meta()) return result;
  if (rows_of(x) == 0) {
    for (const Tensor& t : result) t.zero_();
    return result;
  }
  const auto f = static_cast<Activation>(activation);
  const auto dtype = grad.scalar_type();
  const bool padded = pads(grad);
  // The first layer that wants a gradient: those below it need none.
  size_t first = 0;
  while (!wants_x && first < layers && !mask[1 + first] && !mask[1 + layers + first]) ++first;
  // Of each layer in turn, from the last one.
  Tensor g = is_operand(grad, dtype, padded) ? as_rows(grad) : numbers(grad, dtype, padded);
  Tensor activated;
  for (size_t i = layers; i-- > 0;) {
    Tensor &weight_result = result[1 + i], &bias_result = result[1 + layers + i];
    const int64_t outputs = weights[i].size(0), inputs = weights[i].size(1);
    const Tensor sums = layer_backward(g, activated, activated.defined() ? f : Activation::none,
                                       mask[1 + layers + i]);
    if (sums.defined()) bias_result = sums.narrow(0, 0, outputs).to(bias_result.scalar_type());
    const Tensor a = as_rows(given_or(taken[i], x));
    if (mask[1 + i]) {
      const bool is_whole = g.size(1) == outputs && a.size(1) == inputs;
      Tensor product =
          is_whole ? weight_result : empty({g.size(1), a.size(1)}, weight_result.options());
      weight_grad(g, a, product);
      if (!is_whole) weight_result.copy_(product.narrow(0, 0, outputs).narrow(1, 0, inputs));
    }
    if (!wants_x && i <= first) break;
    const Tensor weight = given_or(rounded[i], weights[i]);
    const bool is_result = i == 0 && result[0].scalar_type() == dtype &&
                           weight.size(1) == x.size(-1) && result[0].is_contiguous();
    Tensor next = is_result ? result[0].view({g.size(0), weight.size(1)})
                            : operand_rows(g.sym_size(0), weight.sym_size(1), g.options(), padded);
    g = at::mm_out(next, g, weight);
    if (i == 0 && !is_result)
      result[0].copy_(g.narrow(1, 0, x.size(-1)).view_symint(x.sym_sizes()));
    activated = a;
  }
  return result;
}

namespace {

// Each of `given` in its place among as many as `present` has, and nothing in the others.
std::vector<Tensor> in_places(at::TensorList given, const c10::List<bool>& present) {
  std::vector<Tensor> all(present.size());
  size_t next = 0;
  for (size_t i = 0; i < all.size(); ++i)
    if (present[i]) all[i] = given[next++];
  return all;
}

struct MLP : Function<MLP> {
  static constexpr bool is_traceable = true;

  // autograd takes no absent tensors in a list: `biases` are those that there are.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, at::TensorList weights,
                        at::TensorList biases, const c10::List<bool>& present, Activation f,
                        at::ScalarType dtype, bool keep) {
    MaybeTensors places;
    for (const Tensor& t : in_places(biases, present)) places.push_back(maybe(t));
    const auto activation = static_cast<int64_t>(f);
    auto [out, taken, rounded] = call<mlp_forward>("fastvae::mlp_forward", x, weights, places,
                                                   activation, dtype, keep, pads(x));
    variable_list saved{x};
    for (const auto& list : {weights, biases, at::TensorList(taken), at::TensorList(rounded)})
      saved.insert(saved.end(), list.begin(), list.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["present"] = present;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const int64_t activation = ctx->saved_data["activation"].toInt();
    const c10::List<bool> present = ctx->saved_data["present"].toBoolList();
    const size_t layers = present.size();
    const size_t biases = std::count(present.begin(), present.end(), true);
    const auto list = [&](size_t from, size_t size) {
      return at::TensorList(saved.data() + from, size);
    };
    const at::TensorList weights = list(1, layers);
    // Of x, the weights, and the biases or what is in their places.
    c10::List<bool> wanted;
    for (size_t i = 0, next = 0; i < 1 + 2 * layers; ++i)
      wanted.push_back(i <= layers || present[i - 1 - layers] ? ctx->needs_input_grad(next++)
                                                              : false);
    variable_list all;
    // Operators of lists have no fallback under vmap, which several gradients at once are.
    const bool batched = grads[0].key_set().has_any(
        c10::DispatchKeySet({c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched}));
    if (graph_wanted() || batched)
      all =
          differentiable(grads[0], saved[0], weights, in_places(list(1 + layers, biases), present),
                         static_cast<Activation>(activation));
    else
      all = call<mlp_backward>("fastvae::mlp_backward", grads[0], saved[0], weights,
                               list(1 + layers + biases, layers),
                               list(1 + 2 * layers + biases, layers), activation, wanted);
    variable_list result;
    for (size_t i = 0; i < all.size(); ++i)
      if (i <= layers || present[i - 1 - layers]) result.push_back(if_wanted(wanted[i], all[i]));
    result.resize(result.size() + 4);
    return result;
  }

  static variable_list differentiable(const Tensor& grad, const Tensor& x, at::TensorList weights,
                                      at::TensorList biases, Activation f) {
    const auto dtype = grad.scalar_type();
    const size_t layers = weights.size();
    variable_list taken{target_values(x, dtype).reshape_symint({rows_of(x), x.sym_size(-1)})};
    for (size_t i = 0; i + 1 < layers; ++i) {
      MaybeTensor bias;
      if (biases[i].defined()) bias = biases[i].to(dtype);
      taken.push_back(activated(at::linear(taken[i], weights[i].to(dtype), bias), f));
    }
    variable_list result(1 + 2 * layers);
    Tensor g = grad.reshape_symint({rows_of(grad), grad.sym_size(-1)});
    for (size_t i = layers; i-- > 0;) {
      result[1 + i] = as_input(g.t().mm(taken[i]), weights[i]);
      if (biases[i].defined()) result[1 + layers + i] = as_input(g.sum(0), biases[i]);
      g = g.mm(weights[i].to(dtype));
      if (i > 0) g = activation_grad(g, taken[i], f);
    }
    if (x.is_floating_point()) result[0] = as_input(g, x).view_symint(x.sym_sizes());
    return result;
  }
};

}  // namespace

Tensor mlp(const Tensor& x, at::TensorList weights, const MaybeTensors& biases,
           std::optional<c10::string_view> activation, std::optional<at::ScalarType> dtype) {
  const Activation f = parse_activation(kOp, activation);
  std::vector<Tensor> given;
  c10::List<bool> present;
  for (const std::optional<Tensor> bias : biases) {
    present.push_back(bias.has_value());
    if (bias.has_value()) given.push_back(*bias);
  }
  const auto wanted = [](const Tensor& t) { return t.requires_grad(); };
  const bool keep =
      graph_wanted() && (wanted(x) || std::any_of(weights.begin(), weights.end(), wanted) ||
                         std::any_of(given.begin(), given.end(), wanted));
  // Without a weight there is an error, which the forward pass names.
  const auto asked = dtype.value_or(weights.empty() ? at::kFloat : weights[0].scalar_type());
  return MLP::apply(x, weights, at::TensorList(given), present, f, product_dtype(x, asked), keep)
      .to(asked);
}

}  // namespace fastvae::ops
