// Negative logarithms of likelihoods, summed over the event: one operator, and one set of passes,
// for all rows of the table in likelihoods.h.
#include "likelihood.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <cmath>

#include "results.h"

namespace fastvae::ops {
namespace {

using likelihoods::Data;
using likelihoods::table;

const likelihoods::Row& row_of(Likelihood likelihood) {
  return table[static_cast<size_t>(likelihood)];
}

Likelihood likelihood_of(c10::string_view name) {
  for (size_t i = 0; i < likelihoods::kCount; ++i)
    if (name == table[i].name) return static_cast<Likelihood>(i);
  TORCH_CHECK_VALUE(false, "fastvae::nll: there is no likelihood '", name, "'");
}

// A call's likelihood: its parameters, of which the last one is absent where `scale` or else
// scale_value stands for it, and its target.
struct Given {
  Likelihood likelihood;
  c10::SmallVector<Tensor, kMostParameters> parameters;
  Tensor target;
  MaybeTensor scale;
  double scale_value;

  Given(Likelihood likelihood, const Tensor& a, const MaybeTensor& b, const MaybeTensor& c,
        const Tensor& target, const MaybeTensor& scale, double scale_value)
      : likelihood(likelihood),
        parameters{a},
        target(target),
        scale(scale),
        scale_value(scale_value) {
    for (const MaybeTensor& t : {b, c})
      if (t.has_value()) parameters.push_back(*t);
    const size_t known = row().count - (row().scale != nullptr);
    TORCH_CHECK_VALUE(parameters.size() == known || parameters.size() == size_t(row().count),
                      row().op, ": takes ", row().count, " parameters, got ", parameters.size());
  }

  const likelihoods::Row& row() const { return row_of(likelihood); }
  const Tensor& first() const { return parameters[0]; }
  int64_t event() const { return target.dim() - 1; }
  bool has_samples() const { return first().dim() > target.dim(); }
  c10::SymIntArrayRef rows() const { return first().sym_sizes().slice(0, has_samples() ? 2 : 1); }
  bool by_scale() const { return parameters.size() < size_t(row().count); }
  // The last parameter, if it may be in another shape than the others.
  size_t elements() const {
    return parameters.size() - (row().last_is_shared && !by_scale() ? 1 : 0);
  }
  const Tensor& last() const { return parameters.back(); }
  at::ScalarType dtype() const {
    auto dtype = sum_dtype({target});
    for (const Tensor& t : parameters)
      if (t.scalar_type() == at::kDouble) dtype = at::kDouble;
    return dtype;
  }

  // Parameters that are elements, and the target.
  c10::SmallVector<Tensor, 8> inputs() const {
    c10::SmallVector<Tensor, 8> all(parameters.begin(), parameters.begin() + elements());
    all.push_back(target);
    return all;
  }
  at::ArrayRef<Tensor> shared() const { return at::ArrayRef<Tensor>(parameters).slice(elements()); }

  void check(bool check_target) const;
};

void Given::check(bool check_target_values) const {
  const likelihoods::Row& row = this->row();
  const char *op = row.op, *name = row.parameters[0];
  if (row.data == Data::counts) {
    check_counts(op, "target", target);
  } else if (row.data == Data::levels) {
    TORCH_CHECK_VALUE(target.scalar_type() == at::kByte, op,
                      ": target must be uint8, the level of a pixel, got ", target.scalar_type());
  } else {
    check_target(op, target);
  }
  check_samples(op, name, first(), target);
  for (size_t i = 1; i < parameters.size(); ++i) {
    const Tensor& parameter = parameters[i];
    if (row.last_is_count && i + 1 == size_t(row.count))
      check_counts(op, row.parameters[i], parameter);
    else
      check_floating(op, row.parameters[i], parameter);
    if (i >= elements())
      check_shared(op, name, first(), row.parameters[i], parameter);
    else
      check_same_shape(op, name, first(), row.parameters[i], parameter);
    check_same_device(op, name, first(), row.parameters[i], parameter);
  }
  if (by_scale()) {
    if (scale.has_value()) {
      check_floating(op, row.scale, *scale);
      TORCH_CHECK_VALUE(scale->dim() == 0, op, ": ", row.scale,
                        " must be a float or a 0-d tensor, got shape ", scale->sym_sizes());
      check_same_device(op, name, first(), row.scale, *scale);
    }
    const double known = host_value(scale, scale_value);
    TORCH_CHECK_VALUE(std::isfinite(known) && known > 0, op, ": ", row.scale,
                      " must be positive and finite, got ", known);
  }
  if (!check_target_values) return;
  if (row.data == Data::probabilities) check_probabilities(op, target);
  if (row.data == Data::counts) check_not_negative(op, "target", target);
  if (row.last_is_count) check_not_above(op, target, last(), row.parameters[row.count - 1]);
}

// One scale for all elements, as the kernels take it.
struct Scale {
  Tensor logarithm, inverse;  // own what the inputs point to

  Scale(const Given& given, LikelihoodInputs& in) {
    if (!given.by_scale()) return;
    in.has_numbers = true;
    const double logarithms = given.row().logarithms;
    if (given.scale.has_value()) {
      const Tensor s = given.scale->to(given.dtype());
      logarithm = s.log().mul_(logarithms);
      inverse = s.reciprocal();
      in.number[0] = scalar_input(logarithm);
      in.number[1] = scalar_input(inverse);
    } else {
      in.number[0].value = logarithms * std::log(given.scale_value);
      in.number[1].value = 1 / given.scale_value;
    }
  }
};

std::array<Output, kMostParameters + 1> outputs_of(const Rows& rows,
                                                   at::ArrayRef<Rows::Result> results) {
  std::array<Output, kMostParameters + 1> outputs;
  for (size_t i = 0; i < results.size(); ++i) outputs[i] = rows.output(i);
  return outputs;
}

LikelihoodInputs inputs_of(const Rows& rows, const Given& given) {
  LikelihoodInputs in = inputs_of(rows, given.likelihood, given.elements());
  if (given.shared().empty()) return in;
  Input& last = in.parameter[given.elements()];
  last = rows.shared(0);
  if (given.row().last_is_count) last = as_count(last);
  return in;
}

// Row sums of the derivative by a last parameter that its last dimensions share, summed further to
// its shape. What is expanded here is by those dimensions smaller than an event.
Tensor last_grad_by_rows(const LikelihoodKernels& kernels, const Given& given, const Tensor& grad,
                         int64_t shared_dims) {
  const Tensor &first = given.first(), &last = given.last();
  const int64_t event = given.event(), samples = given.has_samples();
  const auto own = first.sizes().slice(0, first.dim() - shared_dims);  // [B, ..] or [K, B, ..]
  Tensor last_rows = last.expand(first.sizes()), upstream = grad;
  for (int64_t i = 0; i < shared_dims; ++i) last_rows = last_rows.select(-1, 0);
  for (int64_t i = 0; i < event - shared_dims; ++i) upstream = upstream.unsqueeze(-1);
  const auto flat = [&](const Tensor& t) { return t.expand(own).flatten(samples); };
  const int64_t shared = first.numel() / c10::multiply_integers(own);
  c10::SmallVector<Tensor, 8> inputs;
  for (const Tensor& t : given.inputs())
    inputs.push_back(t.dim() > given.target.dim() ? t.reshape({own[0], -1, shared})
                                                  : t.reshape({-1, shared}));
  const Rows rows(inputs[0], 1, RowOrder::row_major, inputs);
  const Tensor sums = at::empty(flat(upstream).sizes(), grad.options());
  const Tensor upstream_rows = flat(upstream), by_row = flat(last_rows);
  LikelihoodInputs in = inputs_of(rows, given.likelihood, given.elements());
  in.parameter[given.elements()] = rows.upstream(by_row);
  kernels.last_rows(rows.extent, in, sums_of(sums));
  sums.mul_(upstream_rows);
  c10::SmallVector<int64_t, 8> sizes(own.begin(), own.end());
  sizes.resize(static_cast<size_t>(first.dim()), 1);
  return sum_to_shape(sums.view(sizes), last.sizes());
}

// Whether all rows share the last parameter, more than one number, so that its derivative is a sum
// over them.
bool is_of_columns(const Tensor& last, const Tensor& first, int64_t event) {
  return last.sym_sizes() != first.sym_sizes() && last.sym_numel() > 1 &&
         same_for_all_rows(last, event);
}

// The derivatives by all parameters, those that are elements where they are wanted, and that of the
// last one, which is broadcast, in its shape.
Tensor shared_last_grad(const LikelihoodKernels& kernels, const Given& given, const Tensor& grad,
                        at::ArrayRef<Rows::Result> grads) {
  const Tensor &first = given.first(), &last = given.last();
  const int64_t event = given.event();
  if (is_of_columns(last, first, event)) {
    Rows rows(first, event, RowOrder::any, given.inputs(), grads, {last});
    const Tensor columns = at::empty({rows.extent.D}, grad.options().dtype(at::kDouble));
    kernels.backward_columns(rows.extent, rows.upstream(grad), inputs_of(rows, given),
                             outputs_of(rows, grads).data(), sums_of(columns));
    rows.finish();
    return sum_to_shape(rows.by_event(columns), last.sizes());
  }
  int64_t shared_dims = 0;
  while (shared_dims < event && (last.dim() <= shared_dims || last.size(-1 - shared_dims) == 1))
    ++shared_dims;
  const bool by_rows = shared_dims > 0 || last.numel() == 1;
  const Tensor elements = at::empty(by_rows ? at::IntArrayRef{0} : first.sizes(), grad.options());
  bool any = !by_rows;
  for (const Rows::Result& r : grads) any = any || r.wanted;
  if (any) {
    c10::SmallVector<Rows::Result, kMostParameters> results(grads.begin(), grads.end());
    results.push_back({elements, !by_rows});
    Rows rows(first, event, RowOrder::any, given.inputs(), results, {last});
    kernels.backward(rows.extent, rows.upstream(grad), inputs_of(rows, given),
                     outputs_of(rows, results).data());
    rows.finish();
  }
  return by_rows ? last_grad_by_rows(kernels, given, grad, shared_dims)
                 : sum_to_shape(elements, last.sizes());
}

}  // namespace

const LikelihoodKernels& kernels_of(const KernelsFor& kernels, Likelihood likelihood) {
  return *kernels->likelihood[static_cast<size_t>(likelihood)];
}

LikelihoodInputs inputs_of(const Rows& rows, Likelihood likelihood, size_t elements) {
  LikelihoodInputs in;
  for (size_t i = 0; i < elements; ++i) in.parameter[i] = rows.input(i);
  in.target = rows.input(elements);
  if (is_count(row_of(likelihood).data)) in.target = as_count(in.target);
  return in;
}

namespace {

// Row sums, and in the same pass `scale` times the gradients by the parameters where there are
// some.
Tensor sums_and_grads(const Given& given, double scale, at::ArrayRef<Rows::Result> grads) {
  Tensor out = empty(given.rows(), like(given.first(), given.dtype()));
  if (out.is_meta() || out.numel() == 0) {
    for (const Rows::Result& r : grads)
      if (!r.tensor.is_meta()) r.tensor.zero_();
    return out;
  }
  const KernelsFor device(given.first());
  const LikelihoodKernels& kernels = kernels_of(device, given.likelihood);
  const bool by_columns = !grads.empty() && grads.back().wanted && !given.shared().empty() &&
                          is_of_columns(given.last(), given.first(), given.event());
  Rows rows(given.first(), given.event(), RowOrder::any, given.inputs(),
            by_columns ? grads.slice(0, grads.size() - 1) : grads, given.shared());
  LikelihoodInputs in = inputs_of(rows, given);
  const Scale numbers(given, in);
  if (grads.empty()) {
    kernels.sum(rows.extent, in, sums_of(out));
  } else if (by_columns) {
    const Tensor columns = at::empty({rows.extent.D}, like(given.first(), at::kDouble));
    kernels.sum_with_grads_and_columns(rows.extent, in, scale, sums_of(out),
                                       outputs_of(rows, grads.slice(0, grads.size() - 1)).data(),
                                       sums_of(columns));
    grads.back().tensor.copy_(sum_to_shape(rows.by_event(columns), given.last().sizes()));
  } else {
    kernels.sum_with_grads(rows.extent, in, scale, sums_of(out), outputs_of(rows, grads).data());
  }
  rows.finish();
  return out;
}

}  // namespace

Tensor likelihood_rows(Likelihood likelihood, const Tensor& parameter, const Tensor& target,
                       double scale, const Tensor& grad) {
  c10::SmallVector<Rows::Result, 1> grads;
  if (grad.defined()) grads.push_back({grad, true});
  return sums_and_grads({likelihood, parameter, {}, {}, target, {}, 1}, scale, grads);
}

Tensor nll_forward(c10::string_view name, const Tensor& a, const MaybeTensor& b,
                   const MaybeTensor& c, const Tensor& target, const MaybeTensor& scale,
                   double scale_value, bool check_target) {
  const Given given(likelihood_of(name), a, b, c, target, scale, scale_value);
  given.check(check_target);
  return sums_and_grads(given, 1, {});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> nll_with_grads(
    c10::string_view name, const Tensor& a, const MaybeTensor& b, const MaybeTensor& c,
    const Tensor& target, const MaybeTensor& scale, double scale_value, bool mean,
    std::array<bool, 3> mask, bool check_target) {
  const Given given(likelihood_of(name), a, b, c, target, scale, scale_value);
  given.check(check_target);
  std::array<Tensor, 3> grads;
  c10::SmallVector<Rows::Result, 3> results;
  for (size_t i = 0; i < 3; ++i) {
    const bool given_one = i < given.parameters.size();
    grads[i] = grad_like(given_one ? given.parameters[i] : a, given_one && mask[i]);
    if (given_one) results.push_back({grads[i], mask[i]});
  }
  double factor = 1;
  if (mean && !a.is_meta())
    factor /= static_cast<double>(target.size(0) * (given.has_samples() ? a.size(0) : 1));
  const Tensor rows = sums_and_grads(given, factor, results);
  return {rows, grads[0], grads[1], grads[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nll_backward(
    const Tensor& grad, c10::string_view name, const Tensor& a, const MaybeTensor& b,
    const MaybeTensor& c, const Tensor& target, const MaybeTensor& scale, double scale_value,
    std::array<bool, 5> mask) {
  const Given given(likelihood_of(name), a, b, c, target, scale, scale_value);
  std::array<Tensor, 3> grads = {grad_like(a, mask[0]), grad_like(b.value_or(a), mask[1]),
                                 grad_like(c.value_or(a), mask[2])};
  const Tensor grad_target = grad_like(target, mask[3]);
  const Tensor grad_scale = grad_like(scale.value_or(a), mask[4]);
  const auto result = std::make_tuple(grads[0], grads[1], grads[2], grad_target, grad_scale);
  if (is_done(a, grad_target, mask[3])) {
    for (const Tensor& t : {grads[0], grads[1], grads[2], grad_scale})  // summed over nothing
      if (!t.is_meta()) t.zero_();
    return result;
  }
  const KernelsFor device(a);
  const LikelihoodKernels& kernels = kernels_of(device, given.likelihood);
  c10::SmallVector<Rows::Result, 3> results;
  for (size_t i = 0; i < given.parameters.size(); ++i) results.push_back({grads[i], mask[i]});
  const size_t last = given.parameters.size() - 1;
  if (!given.shared().empty() && mask[last] && given.last().sizes() != a.sizes()) {
    results.pop_back();
    grads[last].copy_(shared_last_grad(kernels, given, grad, results));
  } else if (mask[0] || mask[1] || mask[2]) {
    Rows rows(a, given.event(), RowOrder::any, given.inputs(), results, given.shared());
    LikelihoodInputs in = inputs_of(rows, given);
    const Scale numbers(given, in);
    kernels.backward(rows.extent, rows.upstream(grad), in, outputs_of(rows, results).data());
    rows.finish();
  }
  if (mask[3]) {
    Rows rows(a, given.event(), RowOrder::any, given.inputs(), {{grad_target, true}},
              given.shared());
    LikelihoodInputs in = inputs_of(rows, given);
    const Scale numbers(given, in);
    kernels.backward_target(rows.extent, rows.upstream(grad), in, rows.output(0));
    rows.finish();
  }
  if (mask[4]) {
    const Rows rows(a, given.event(), RowOrder::any, given.inputs());
    LikelihoodInputs in = inputs_of(rows, given);
    const Scale numbers(given, in);
    const Tensor per_row = at::empty(grad.sizes(), grad.options());
    kernels.last_rows(rows.extent, in, sums_of(per_row));
    // By the parameter that the scale stands for, of which it has so many logarithms.
    grad_scale.copy_(per_row.mul_(grad).sum().mul_(given.row().logarithms).mul_(numbers.inverse));
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nll_backward_twice(
    const Tensor& grad, c10::string_view name, const Tensor& a, const MaybeTensor& b,
    const MaybeTensor& c, const Tensor& target, const MaybeTensor& direction_a,
    const MaybeTensor& direction_b, const MaybeTensor& direction_c,
    const MaybeTensor& direction_target) {
  const Given given(likelihood_of(name), a, b, c, target, {}, 1);
  const auto dtype = sum_dtype({grad});
  const Tensor sums = at::empty_symint(given.rows(), like(grad, dtype));
  const std::array<const MaybeTensor*, 3> directions = {&direction_a, &direction_b, &direction_c};
  const Tensor absent = at::empty({0}, like(a, dtype));
  std::array<Tensor, 3> grads = {absent, absent, absent};
  const size_t elements = given.elements(), count = given.parameters.size();
  if (a.is_meta() || a.numel() == 0) {
    for (size_t i = 0; i < count; ++i) grads[i] = at::empty_like(given.parameters[i]);
    const auto result =
        std::make_tuple(sums, grads[0], grads[1], grads[2], at::empty_like(target, dtype));
    if (!a.is_meta()) std::apply([](auto&... t) { (t.zero_(), ...); }, result);
    return result;
  }
  // Of what is summed to another shape, all elements first.
  c10::SmallVector<Rows::Result, 4> results;
  for (size_t i = 0; i <= count; ++i)
    results.push_back({at::empty(a.sizes(), like(a, dtype)), true});
  c10::SmallVector<Tensor, 8> inputs = given.inputs();
  c10::SmallVector<Tensor, 2> shared(given.shared().begin(), given.shared().end());
  std::array<int64_t, 4> place = {-1, -1, -1, -1};  // of each direction among the inputs
  for (size_t i = 0; i < elements; ++i) {
    if (!directions[i]->has_value()) continue;
    place[i] = static_cast<int64_t>(inputs.size());
    inputs.push_back(**directions[i]);
  }
  if (direction_target.has_value()) {
    place[3] = static_cast<int64_t>(inputs.size());
    inputs.push_back(*direction_target);
  }
  if (elements < count && directions[elements]->has_value())
    shared.push_back(**directions[elements]);
  const Rows rows(a, given.event(), RowOrder::row_major, inputs, results, shared);
  const LikelihoodInputs in = inputs_of(rows, given);
  LikelihoodInputs direction;
  for (size_t i = 0; i < elements; ++i)
    if (place[i] >= 0) direction.parameter[i] = rows.input(place[i]);
  if (place[3] >= 0) direction.target = rows.input(place[3]);
  if (shared.size() == 2) direction.parameter[elements] = rows.shared(1);
  const KernelsFor device(a);
  kernels_of(device, given.likelihood)
      .backward_twice(rows.extent, rows.upstream(grad), in, direction, sums_of(sums),
                      outputs_of(rows, results).data());
  for (size_t i = 0; i < count; ++i)
    grads[i] = sum_to_shape(results[i].tensor, given.parameters[i].sizes());
  return {sums, grads[0], grads[1], grads[2], sum_to_shape(results[count].tensor, target.sizes())};
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
    auto [grad_a, grad_b, grad_c, grad_target, unused] =
        call<nll_backward>("fastvae::nll_backward", grad, name, a, b, c, target, std::nullopt, 1.0,
                           std::array<bool, 5>{mask[0], mask[1], mask[2], mask[3], false});
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

struct NLL : Function<NLL> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, Likelihood likelihood, const Tensor& a,
                               const MaybeTensor& b, const MaybeTensor& c, const Tensor& target,
                               const MaybeTensor& scale, double scale_value, Reduction reduction,
                               std::array<bool, 3> written, bool check_target) {
    const char* name = row_of(likelihood).name;
    Tensor rows;
    if (written[0] || written[1] || written[2]) {
      std::array<Tensor, 3> grads;
      std::tie(rows, grads[0], grads[1], grads[2]) =
          call<nll_with_grads>("fastvae::nll_with_grads", name, a, b, c, target, scale, scale_value,
                               reduction == Reduction::mean, written, check_target);
      keep_written(ctx, {if_wanted(written[0], grads[0]), if_wanted(written[1], grads[1]),
                         if_wanted(written[2], grads[2])});
    } else {
      rows = call<nll_forward>("fastvae::nll_forward", name, a, b, c, target, scale, scale_value,
                               check_target);
    }
    ctx->save_for_backward(
        {a, b.value_or(Tensor()), c.value_or(Tensor()), target, scale.value_or(Tensor())});
    ctx->saved_data["likelihood"] = static_cast<int64_t>(likelihood);
    ctx->saved_data["scale_value"] = scale_value;
    ctx->saved_data["reduction"] = static_cast<int64_t>(reduction);
    return {reduce(rows, reduction)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto likelihood = static_cast<Likelihood>(ctx->saved_data["likelihood"].toInt());
    const Tensor &a = saved[0], &target = saved[3];
    const MaybeTensor b = maybe(saved[1]), c = maybe(saved[2]), scale = maybe(saved[4]);
    const double scale_value = ctx->saved_data["scale_value"].toDouble();
    const auto reduction = static_cast<Reduction>(ctx->saved_data["reduction"].toInt());
    const auto per_row = [&] {
      return unreduce(grads[0], reduction, a.sym_sizes().slice(0, 1 + a.dim() - target.dim()));
    };
    // Absent tensors have no index.
    std::array<bool, 5> wanted;
    for (size_t i = 0, next = 0; i < saved.size(); ++i)
      wanted[i] = saved[i].defined() && ctx->needs_input_grad(next++);
    std::array<Tensor, 5> g;
    if (graph_wanted()) {
      differentiable(likelihood, per_row(), a, b, c, target, scale, scale_value, wanted, g);
    } else {
      std::array<bool, 5> mask = wanted;
      const variable_list written = take_written(ctx, grads[0]);
      for (size_t i = 0; i < written.size(); ++i)
        if (written[i].defined()) mask[i] = false;
      if (std::find(mask.begin(), mask.end(), true) != mask.end())
        std::tie(g[0], g[1], g[2], g[3], g[4]) =
            call<nll_backward>("fastvae::nll_backward", per_row(), row_of(likelihood).name, a, b, c,
                               target, scale, scale_value, mask);
      for (size_t i = 0; i < written.size(); ++i)
        if (written[i].defined()) g[i] = written[i];
    }
    return {Tensor(),
            if_wanted(wanted[0], g[0]),
            if_wanted(wanted[1], g[1]),
            if_wanted(wanted[2], g[2]),
            if_wanted(wanted[3], g[3]),
            if_wanted(wanted[4], g[4]),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }

  static void differentiable(Likelihood likelihood, const Tensor& grad, const Tensor& a,
                             MaybeTensor b, MaybeTensor c, const Tensor& target,
                             const MaybeTensor& scale, double scale_value,
                             std::array<bool, 5> wanted, std::array<Tensor, 5>& g) {
    const likelihoods::Row& row = row_of(likelihood);
    const size_t last = row.count - 1;
    MaybeTensor& last_parameter = last == 1 ? b : c;
    const bool by_scale = row.scale != nullptr && !last_parameter.has_value();
    Tensor number;
    if (by_scale) {
      number = scale.has_value() ? scale->to(grad.scalar_type())
                                 : at::scalar_tensor(scale_value, grad.options());
      last_parameter = number.log() * row.logarithms;
    }
    std::array<bool, 4> mask = {wanted[0], wanted[1], wanted[2], wanted[3]};
    if (by_scale) mask[last] = wanted[4];
    const variable_list all = NLLBackward::apply(likelihood, grad, a, b, c, target, mask);
    std::copy(all.begin(), all.end(), g.begin());
    if (by_scale && wanted[4]) g[4] = as_input(all[last] * (row.logarithms / number), *scale);
  }
};

}  // namespace

std::pair<Tensor, Tensor> differentiable_grads(Likelihood likelihood, const Tensor& grad,
                                               const Tensor& parameter, const Tensor& target,
                                               std::array<bool, 2> wanted) {
  const variable_list all =
      NLLBackward::apply(likelihood, grad, parameter, MaybeTensor(), MaybeTensor(), target,
                         std::array<bool, 4>{wanted[0], false, false, wanted[1]});
  return {all[0], all[3]};
}

std::pair<Tensor, Tensor> likelihood_grads(AutogradContext* ctx, Likelihood likelihood,
                                           const std::function<Tensor()>& per_row,
                                           const Tensor& factor, const Tensor& parameter,
                                           const Tensor& target, std::array<bool, 2> wanted) {
  if (graph_wanted()) return differentiable_grads(likelihood, per_row(), parameter, target, wanted);
  variable_list written;
  if (wanted[0]) written = take_written(ctx, factor);
  if (!written.empty()) wanted[0] = false;
  std::pair<Tensor, Tensor> grads;
  if (wanted[0] || wanted[1])
    std::tie(grads.first, std::ignore, std::ignore, grads.second, std::ignore) =
        call<nll_backward>("fastvae::nll_backward", per_row(), row_of(likelihood).name, parameter,
                           std::nullopt, std::nullopt, target, std::nullopt, 1.0,
                           std::array<bool, 5>{wanted[0], false, false, wanted[1], false});
  if (!written.empty()) grads.first = written[0];
  return grads;
}

Tensor nll(c10::string_view name, const Tensor& a, const Tensor& target,
           c10::string_view reduction_name, bool check_target, const MaybeTensor& b,
           const MaybeTensor& c, const MaybeTensor& scale, double scale_value) {
  const Likelihood likelihood = likelihood_of(name);
  const Reduction reduction = parse_reduction(row_of(likelihood).op, reduction_name);
  // The forward pass writes the gradients of all parameters that want one, or none.
  std::array<bool, 3> written = {};
  const std::array<const Tensor*, 3> parameters = {&a, b ? &*b : nullptr, c ? &*c : nullptr};
  bool all = writes_grad(true, a, reduction);
  for (size_t i = 0; i < 3; ++i) {
    written[i] = parameters[i] != nullptr && parameters[i]->requires_grad();
    all = all && (!written[i] || parameters[i]->sym_sizes() == a.sym_sizes() ||
                  is_of_columns(*parameters[i], a, target.dim() - 1));
  }
  if (!all) written = {};
  return NLL::apply(likelihood, a, b, c, target, scale, scale_value, reduction, written,
                    check_target)[0];
}

}  // namespace fastvae::ops
