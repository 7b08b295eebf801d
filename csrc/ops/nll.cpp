// The negative logarithm of a likelihood as an operator, with its derivatives.
#include <ATen/ops/arange.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/searchsorted.h>

#include <cmath>

#include "likelihood.h"
#include "results.h"

namespace fastvae::ops {

Tensor nll_forward(c10::string_view name, const Tensor& a, const MaybeTensor& b,
                   const MaybeTensor& c, const Tensor& target, const MaybeTensor& scale,
                   double scale_value, bool of_shares, const MaybeTensor& log_library,
                   const MaybeTensor& crow_indices, const MaybeTensor& col_indices,
                   bool check_target) {
  const Given given(likelihood_of(name), a, b, c, target, scale, scale_value, of_shares,
                    log_library, crow_indices, col_indices);
  given.check(given.row().op, check_target);
  return sums_and_grads(given, 1, {});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nll_with_grads(
    c10::string_view name, const Tensor& a, const MaybeTensor& b, const MaybeTensor& c,
    const Tensor& target, const MaybeTensor& scale, double scale_value, bool of_shares,
    const MaybeTensor& log_library, const MaybeTensor& crow_indices, const MaybeTensor& col_indices,
    bool mean, std::array<bool, 4> mask, bool check_target) {
  const Given given(likelihood_of(name), a, b, c, target, scale, scale_value, of_shares,
                    log_library, crow_indices, col_indices);
  given.check(given.row().op, check_target);
  std::array<Tensor, 3> grads;
  c10::SmallVector<Rows::Result, 3> results;
  for (size_t i = 0; i < 3; ++i) {
    const bool given_one = i < given.parameters.size();
    grads[i] = grad_like(given_one ? given.parameters[i] : a, given_one && mask[i]);
    if (given_one) results.push_back({grads[i], mask[i]});
  }
  const Tensor grad_library = grad_like(log_library.value_or(a), mask[3]);
  double factor = 1;
  if (mean && !a.is_meta())
    for (const auto& size : given.rows()) factor /= static_cast<double>(size.expect_int());
  const Tensor rows = sums_and_grads(given, factor, results, {grad_library, mask[3]});
  return {rows, grads[0], grads[1], grads[2], grad_library};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> nll_backward(
    const Tensor& grad, c10::string_view name, const Tensor& a, const MaybeTensor& b,
    const MaybeTensor& c, const Tensor& target, const MaybeTensor& scale, double scale_value,
    bool of_shares, const MaybeTensor& log_library, const MaybeTensor& crow_indices,
    const MaybeTensor& col_indices, std::array<bool, 6> mask) {
  const Given given(likelihood_of(name), a, b, c, target, scale, scale_value, of_shares,
                    log_library, crow_indices, col_indices);
  std::array<Tensor, 3> grads = {grad_like(a, mask[0]), grad_like(b.value_or(a), mask[1]),
                                 grad_like(c.value_or(a), mask[2])};
  const Tensor grad_target = grad_like(target, mask[3]);
  const Tensor grad_scale = grad_like(scale.value_or(a), mask[4]);
  const Tensor grad_library = grad_like(log_library.value_or(a), mask[5]);
  const auto result =
      std::make_tuple(grads[0], grads[1], grads[2], grad_target, grad_scale, grad_library);
  if (a.is_meta()) return result;
  c10::SmallVector<Rows::Result, 3> results;
  for (size_t i = 0; i < given.parameters.size(); ++i) results.push_back({grads[i], mask[i]});
  gradients(given, grad, results, {grad_target, mask[3]}, {grad_scale, mask[4]},
            {grad_library, mask[5]});
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nll_backward_twice(
    const Tensor& grad, c10::string_view name, const Tensor& a, const MaybeTensor& b,
    const MaybeTensor& c, const Tensor& target, const MaybeTensor& direction_a,
    const MaybeTensor& direction_b, const MaybeTensor& direction_c,
    const MaybeTensor& direction_target) {
  return gradients_along({likelihood_of(name), a, b, c, target}, grad,
                         {&direction_a, &direction_b, &direction_c}, direction_target);
}

void scale_grad(const Tensor& grad, const Tensor& factor) {
  if (grad.is_meta() || grad.numel() == 0) return;
  TORCH_CHECK_VALUE(grad.is_non_overlapping_and_dense(),
                    "fastvae::scale_grad: a gradient must be dense, got strides ", grad.strides(),
                    " of shape ", grad.sizes());
  const Rows rows(grad, grad.dim(), RowOrder::any, {grad}, {{grad, true}});
  KernelsFor(grad)->scale_unless_one(rows.extent, PerRow{scalar_input(factor)}, rows.input(0),
                                     rows.output(0));
}

namespace {

// The gradients as a function of everything that they depend on.
struct NLLBackward : Function<NLLBackward> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, Likelihood likelihood, const Tensor& grad,
                               const Tensor& a, const MaybeTensor& b, const MaybeTensor& c,
                               const Tensor& target, std::array<bool, 4> mask) {
    const char* name = row_of(likelihood).name;
    auto [grad_a, grad_b, grad_c, grad_target, by_scale, by_library] =
        call<nll_backward>("fastvae::nll_backward", grad, name, a, b, c, target, std::nullopt, 1.0,
                           false, std::nullopt, std::nullopt, std::nullopt,
                           std::array<bool, 6>{mask[0], mask[1], mask[2], mask[3], false, false});
    ctx->save_for_backward({grad, a, b.value_or(Tensor()), c.value_or(Tensor()), target});
    ctx->saved_data["likelihood"] = static_cast<int64_t>(likelihood);
    ctx->saved_data["mask"] = std::vector<bool>(mask.begin(), mask.end());
    ctx->set_materialize_grads(false);
    return {grad_a, grad_b, grad_c, grad_target};
  }

  static variable_list backward(AutogradContext* ctx, variable_list directions) {
    const auto saved = ctx->get_saved_variables();
    const auto likelihood = static_cast<Likelihood>(ctx->saved_data["likelihood"].toInt());
    const auto mask = ctx->saved_data["mask"].toBoolList();
    const auto direction = [&](size_t i) { return mask[i] ? maybe(directions[i]) : std::nullopt; };
    // With its fallback for autograd, which refuses third derivatives.
    auto [grad_grad, grad_a, grad_b, grad_c, grad_target] = above_autograd<nll_backward_twice>(
        "fastvae::nll_backward_twice", saved[0], row_of(likelihood).name, saved[1], maybe(saved[2]),
        maybe(saved[3]), saved[4], direction(0), direction(1), direction(2), direction(3));
    const bool has_b = saved[2].defined(), has_c = saved[3].defined();
    const bool wants_target = ctx->needs_input_grad(2 + has_b + has_c);
    return {Tensor(),
            as_input(grad_grad, saved[0]),
            as_input(grad_a, saved[1]),
            has_b ? as_input(grad_b, saved[2]) : Tensor(),
            has_c ? as_input(grad_c, saved[3]) : Tensor(),
            wants_target ? as_input(grad_target, saved[4]) : Tensor(),
            Tensor()};
  }
};

// What compressed rows stand for, [B, D].
Tensor dense(const Given& given) {
  const Tensor &crow = *given.crow_indices, &col = *given.col_indices;
  const c10::SymInt B = crow.sym_size(0) - 1;
  Tensor whole =
      given.target.new_zeros_symint({B, given.first().sym_size(-1)}, given.target.options());
  const Tensor stored = at::arange(col.sym_size(0), col.options());
  const Tensor row = at::searchsorted(crow, stored, /*out_int32=*/false, /*right=*/true) - 1;
  return whole.index_put({row, col}, given.target);
}

}  // namespace

std::array<Tensor, 6> differentiable_gradients(const Given& given, const Tensor& grad,
                                               std::array<bool, 6> wanted) {
  const likelihoods::Row& row = given.row();
  const size_t last = row.count - 1;
  std::array<MaybeTensor, 3> parameters;
  std::copy(given.parameters.begin(), given.parameters.end(), parameters.begin());
  const bool by_scale = given.by_scale();
  Tensor number;
  if (by_scale) {
    number = given.scale.has_value() ? given.scale->to(grad.scalar_type())
                                     : at::scalar_tensor(given.scale_value, grad.options());
    parameters[last] = number.log() * row.logarithms;
  }
  c10::SmallVector<int64_t, 6> event;
  for (int64_t i = 1; i <= given.event(); ++i) event.push_back(-i);
  Tensor log_shares;
  if (given.of_shares) {
    const Tensor x = given.first().to(given.dtype());
    log_shares = event.empty() ? x - x : x - at::logsumexp(x, event, /*keepdim=*/true);
    parameters[0] = given.log_library.has_value()
                        ? log_shares + beside_event(*given.log_library, given.event())
                        : log_shares;
  }
  std::array<bool, 4> mask = {wanted[0] || wanted[5], wanted[1], wanted[2], wanted[3]};
  if (by_scale) mask[last] = wanted[4];
  const variable_list all =
      NLLBackward::apply(given.likelihood, grad, *parameters[0], parameters[1], parameters[2],
                         given.is_sparse() ? dense(given) : given.target, mask);
  std::array<Tensor, 6> g;
  std::copy(all.begin(), all.end(), g.begin());
  if (by_scale && wanted[4]) g[4] = as_input(all[last] * (row.logarithms / number), *given.scale);
  if (given.of_shares && mask[0]) {
    const Tensor total = event.empty() ? all[0] : all[0].sum(event, /*keepdim=*/true);
    g[0] = as_input(all[0] - log_shares.exp() * total, given.first());
    if (wanted[5]) {
      const Tensor by_row = total.view_symint(given.rows());
      g[5] = as_input(fold(by_row, by_row.dim() > given.log_library->dim()), *given.log_library);
    }
  }
  return g;
}

std::pair<Tensor, Tensor> likelihood_grads(AutogradContext* ctx, Likelihood likelihood,
                                           const std::function<Tensor()>& per_row,
                                           const Tensor& factor, const Tensor& parameter,
                                           const Tensor& target, std::array<bool, 2> wanted) {
  if (graph_wanted()) {
    const std::array<Tensor, 6> g =
        differentiable_gradients({likelihood, parameter, {}, {}, target}, per_row(),
                                 {wanted[0], false, false, wanted[1], false, false});
    return {g[0], g[3]};
  }
  variable_list written;
  if (wanted[0]) written = take_written(ctx, factor);
  if (!written.empty()) wanted[0] = false;
  std::pair<Tensor, Tensor> grads;
  if (wanted[0] || wanted[1])
    std::tie(grads.first, std::ignore, std::ignore, grads.second, std::ignore, std::ignore) =
        call<nll_backward>("fastvae::nll_backward", per_row(), row_of(likelihood).name, parameter,
                           std::nullopt, std::nullopt, target, std::nullopt, 1.0, false,
                           std::nullopt, std::nullopt, std::nullopt,
                           std::array<bool, 6>{wanted[0], false, false, wanted[1], false, false});
  if (!written.empty()) grads.first = written[0];
  return grads;
}

namespace {

// What a call has beside the tensors that autograd follows.
struct Call {
  Likelihood likelihood;
  double scale_value;
  Reduction reduction;
  MaybeTensor crow_indices, col_indices;
  std::array<bool, 4> written;
  bool check_target;
};

Tensor without_gradients(const Tensor& a, const MaybeTensor& b, const MaybeTensor& c,
                         const Tensor& target, const MaybeTensor& scale,
                         const MaybeTensor& log_library, const Call& own) {
  return call<nll_forward>("fastvae::nll_forward", row_of(own.likelihood).name, a, b, c, target,
                           scale, own.scale_value, is_of_shares(own.likelihood, log_library),
                           log_library, own.crow_indices, own.col_indices, own.check_target);
}

struct NLL : Function<NLL> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& a, const MaybeTensor& b,
                               const MaybeTensor& c, const Tensor& target, const MaybeTensor& scale,
                               const MaybeTensor& log_library, const Call& own) {
    Tensor rows;
    if (own.written != std::array<bool, 4>{}) {
      std::array<Tensor, 4> grads;
      std::tie(rows, grads[0], grads[1], grads[2], grads[3]) = call<nll_with_grads>(
          "fastvae::nll_with_grads", row_of(own.likelihood).name, a, b, c, target, scale,
          own.scale_value, is_of_shares(own.likelihood, log_library), log_library, own.crow_indices,
          own.col_indices, own.reduction == Reduction::mean, own.written, own.check_target);
      variable_list kept;
      for (size_t i = 0; i < 4; ++i) kept.push_back(if_wanted(own.written[i], grads[i]));
      keep_written(ctx, std::move(kept));
    } else {
      rows = without_gradients(a, b, c, target, scale, log_library, own);
    }
    const auto saved = [](const MaybeTensor& t) { return t.value_or(Tensor()); };
    ctx->save_for_backward({a, saved(b), saved(c), target, saved(scale), saved(log_library),
                            saved(own.crow_indices), saved(own.col_indices)});
    ctx->saved_data["likelihood"] = static_cast<int64_t>(own.likelihood);
    ctx->saved_data["reduction"] = static_cast<int64_t>(own.reduction);
    ctx->saved_data["scale_value"] = own.scale_value;
    return {reduce(rows, own.reduction)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto likelihood = static_cast<Likelihood>(ctx->saved_data["likelihood"].toInt());
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
    const MaybeTensor log_library = maybe(saved[5]);
    const Given given(likelihood, saved[0], maybe(saved[1]), maybe(saved[2]), saved[3],
                      maybe(saved[4]), ctx->saved_data["scale_value"].toDouble(),
                      is_of_shares(likelihood, log_library), log_library, maybe(saved[6]),
                      maybe(saved[7]));
    const auto per_row = [&] { return unreduce(grads[0], reduction, given.rows()); };
    // Absent tensors have no index.
    std::array<bool, 6> wanted;
    for (size_t i = 0, next = 0; i < wanted.size(); ++i)
      wanted[i] = saved[i].defined() && ctx->needs_input_grad(next++);
    std::array<Tensor, 6> g;
    if (graph_wanted()) {
      g = differentiable_gradients(given, per_row(), wanted);
    } else {
      constexpr size_t place[] = {0, 1, 2, 5};  // of what the forward pass wrote
      std::array<bool, 6> mask = wanted;
      const variable_list written = take_written(ctx, grads[0]);
      for (size_t i = 0; i < written.size(); ++i)
        if (written[i].defined()) mask[place[i]] = false;
      if (mask != std::array<bool, 6>{})
        std::tie(g[0], g[1], g[2], g[3], g[4], g[5]) = call<nll_backward>(
            "fastvae::nll_backward", per_row(), given.row().name, saved[0], maybe(saved[1]),
            maybe(saved[2]), saved[3], given.scale, given.scale_value, given.of_shares,
            given.log_library, given.crow_indices, given.col_indices, mask);
      for (size_t i = 0; i < written.size(); ++i)
        if (written[i].defined()) g[place[i]] = written[i];
    }
    variable_list result(7);
    for (size_t i = 0; i < g.size(); ++i) result[i] = if_wanted(wanted[i], g[i]);
    return result;
  }
};

}  // namespace

Tensor nll(c10::string_view name, const Tensor& a, const Tensor& target,
           c10::string_view reduction_name, bool check_target, const MaybeTensor& b,
           const MaybeTensor& c, const MaybeTensor& scale, double scale_value,
           const MaybeTensor& log_library, const MaybeTensor& crow_indices,
           const MaybeTensor& col_indices) {
  const Likelihood likelihood = likelihood_of(name);
  const likelihoods::Row& row = row_of(likelihood);
  const Reduction reduction = parse_reduction(row.op, reduction_name);
  const bool is_sparse = crow_indices.has_value();
  check_dense(row.op, target);
  TORCH_CHECK_VALUE(!is_sparse || !target.requires_grad(), row.op,
                    ": a sparse target must not require a gradient");
  Call own = {likelihood, scale_value, reduction, crow_indices, col_indices, {}, check_target};
  if (!graph_wanted() ||
      !(requires_grad(a) || requires_grad(b) || requires_grad(c) || requires_grad(target) ||
        requires_grad(scale) || requires_grad(log_library)))
    return reduce(without_gradients(a, b, c, target, scale, log_library, own), reduction);
  // The forward pass writes the gradients of all parameters that want one, or none.
  const std::array<const Tensor*, 3> parameters = {&a, b ? &*b : nullptr, c ? &*c : nullptr};
  bool all = writes_grad(true, a, reduction);
  for (size_t i = 0; i < 3; ++i) {
    own.written[i] = parameters[i] != nullptr && parameters[i]->requires_grad();
    all = all && (!own.written[i] || parameters[i]->sym_sizes() == a.sym_sizes() ||
                  is_of_columns(*parameters[i], a, is_sparse ? 1 : target.dim() - 1));
  }
  own.written[3] = requires_grad(log_library);
  if (!all) own.written = {};
  return NLL::apply(a, b, c, target, scale, log_library, own)[0];
}

}  // namespace fastvae::ops
