// Negative logarithms of likelihoods, summed over the event: one set of passes for all rows of the
// table in likelihoods.h.
#include "likelihood.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "results.h"

namespace fastvae::ops {

using likelihoods::Data;
using likelihoods::table;

Likelihood likelihood_of(c10::string_view name) {
  for (size_t i = 0; i < likelihoods::kCount; ++i)
    if (name == table[i].name) return static_cast<Likelihood>(i);
  TORCH_CHECK_VALUE(false, "fastvae::nll: there is no likelihood '", name, "'");
}

Tensor Part::of(const Tensor& t, int64_t event_dims) const {
  const int64_t rows = t.dim() - event_dims - 1, leading = rows - 1;
  Tensor part = t;
  if (rows >= 0 && t.size(rows) != 1) part = part.narrow(rows, b, batch);
  if (leading >= 0 && t.size(leading) != 1) part = part.narrow(leading, k, samples);
  return part;
}

int64_t block_elements(const Tensor& beside, int64_t all, int64_t element_size) {
  if (!beside.is_cuda()) return kBlockElements;
  return std::clamp(all / 4, kCudaLeastBytes / element_size, kCudaMostBytes / element_size);
}

Given::Given(Likelihood likelihood, const Tensor& a, const MaybeTensor& b, const MaybeTensor& c,
             const Tensor& target, const MaybeTensor& scale, double scale_value, bool of_shares,
             const MaybeTensor& log_library, const MaybeTensor& crow_indices,
             const MaybeTensor& col_indices)
    : likelihood(likelihood),
      parameters{a},
      target(target),
      scale(scale),
      scale_value(scale_value),
      of_shares(of_shares),
      log_library(log_library),
      crow_indices(crow_indices),
      col_indices(col_indices) {
  for (const MaybeTensor& t : {b, c})
    if (t.has_value()) parameters.push_back(*t);
  const size_t known = row().count - (row().scale != nullptr);
  TORCH_CHECK_VALUE(parameters.size() == known || parameters.size() == size_t(row().count),
                    row().op, ": takes ", row().count, " parameters, got ", parameters.size());
}

at::ScalarType Given::dtype() const {
  auto dtype = sum_dtype({target, log_library});
  for (const Tensor& t : parameters)
    if (t.scalar_type() == at::kDouble) dtype = at::kDouble;
  return dtype;
}

c10::SmallVector<Tensor, 8> Given::inputs() const {
  c10::SmallVector<Tensor, 8> all(parameters.begin(), parameters.begin() + elements());
  if (!is_sparse()) all.push_back(target);
  return all;
}

LikelihoodInputs Given::inputs_of(const Rows& rows, const Input& last) const {
  LikelihoodInputs in;
  for (size_t i = 0; i < elements(); ++i) in.parameter[i] = rows.input(i);
  if (!shared().empty()) in.parameter[elements()] = row().last_is_count ? as_count(last) : last;
  in.target =
      is_sparse() ? sparse_input(*crow_indices, *col_indices, target) : rows.input(elements());
  if (likelihoods::is_count(row().data)) in.target = as_count(in.target);
  return in;
}

Given Given::part(const Part& part) const {
  Given some = *this;
  for (Tensor& t : some.parameters) t = part.of(t, event());
  if (log_library.has_value()) some.log_library = part.of(*log_library, 0);
  if (is_sparse())
    some.crow_indices = crow_indices->narrow(0, part.b, part.batch + 1);
  else
    some.target = part.of(target, event());
  return some;
}

void Given::check(const char* op, bool check_target_values) const {
  const likelihoods::Row& row = this->row();
  const char* name = row.parameters[0];
  TORCH_CHECK_VALUE(!is_sparse() || row.data == Data::counts, op,
                    ": target must be dense, because it holds no counts");
  if (row.data == Data::counts) {
    check_counts(op, "target", target);
  } else if (row.data == Data::levels) {
    TORCH_CHECK_VALUE(target.scalar_type() == at::kByte, op,
                      ": target must be uint8, the level of a pixel, got ", target.scalar_type());
  } else {
    check_target(op, target);
  }
  if (is_sparse())
    check_sparse(op, name, first(), *crow_indices, *col_indices, target);
  else
    check_samples(op, name, first(), target);
  if (log_library.has_value()) {
    TORCH_CHECK_VALUE(row.shares == likelihoods::Shares::of_library, op,
                      ": takes no log_library, because its means are not shares of one");
    check_floating(op, "log_library", *log_library);
    check_same_device(op, name, first(), "log_library", *log_library);
    TORCH_CHECK_VALUE(log_library->sym_sizes() == rows() ||
                          log_library->sym_sizes() == rows().slice(has_samples() ? 1 : 0),
                      op, ": log_library must be [B], or [K, B] with samples, got ",
                      log_library->sym_sizes(), " and ", name, " ", first().sym_sizes());
  }
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
  if (row.data == Data::counts)
    check_not_negative(op, is_sparse() ? "the values of a sparse target" : "target", target);
  if (row.last_is_count) check_not_above(op, target, last(), row.parameters[row.count - 1]);
}

namespace {

const LikelihoodKernels& kernels_of(const KernelsFor& kernels, Likelihood likelihood) {
  return *kernels->likelihood[static_cast<size_t>(likelihood)];
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

// What a kernel takes for one pass.
struct Pass {
  Rows rows;
  LikelihoodInputs in;
  Scale numbers;

  explicit Pass(const Given& given, at::ArrayRef<Rows::Result> results = {})
      : rows(given.first(), given.event(), RowOrder::any, given.inputs(), results, given.shared()),
        in(given.inputs_of(rows, given.shared().empty() ? Input() : rows.shared(0))),
        numbers(given, in) {
    for (size_t i = 0; i < results.size(); ++i) outputs_[i] = rows.output(i);
  }
  const Output* outputs() const { return outputs_; }

 private:
  Output outputs_[kMostParameters + 1];
};

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
    inputs.push_back(t.dim() > event + 1 ? t.reshape({own[0], -1, shared})
                                         : t.reshape({-1, shared}));
  const Rows rows(inputs[0], 1, RowOrder::row_major, inputs);
  const Tensor sums = at::empty(flat(upstream).sizes(), grad.options());
  const Tensor upstream_rows = flat(upstream), by_row = flat(last_rows);
  kernels.last_rows(rows.extent, given.inputs_of(rows, rows.upstream(by_row)), sums_of(sums));
  sums.mul_(upstream_rows);
  c10::SmallVector<int64_t, 8> sizes(own.begin(), own.end());
  sizes.resize(static_cast<size_t>(first.dim()), 1);
  return sum_to_shape(sums.view(sizes), last.sizes());
}

// The derivatives by all parameters, those that are elements where they are wanted, and that of the
// last one, which is broadcast, in its shape.
Tensor shared_last_grad(const LikelihoodKernels& kernels, const Given& given, const Tensor& grad,
                        at::ArrayRef<Rows::Result> grads) {
  const Tensor &first = given.first(), &last = given.last();
  const int64_t event = given.event();
  if (is_of_columns(last, first, event)) {
    Pass pass(given, grads);
    const Tensor columns = at::empty({pass.rows.extent.D}, grad.options().dtype(at::kDouble));
    kernels.backward_columns(pass.rows.extent, pass.rows.upstream(grad), pass.in, pass.outputs(),
                             sums_of(columns));
    pass.rows.finish();
    return sum_to_shape(pass.rows.by_event(columns), last.sizes());
  }
  int64_t shared_dims = 0;
  while (shared_dims < event && (last.dim() <= shared_dims || last.size(-1 - shared_dims) == 1))
    ++shared_dims;
  const bool by_rows = shared_dims > 0 || last.numel() == 1;
  Tensor of_rows;
  if (by_rows) of_rows = last_grad_by_rows(kernels, given, grad, shared_dims);
  const Tensor elements = at::empty(by_rows ? at::IntArrayRef{0} : first.sizes(), grad.options());
  bool any = !by_rows;
  for (const Rows::Result& r : grads) any = any || r.wanted;
  if (any) {
    c10::SmallVector<Rows::Result, kMostParameters> results(grads.begin(), grads.end());
    results.push_back({elements, !by_rows});
    Pass pass(given, results);
    kernels.backward(pass.rows.extent, pass.rows.upstream(grad), pass.in, pass.outputs());
    pass.rows.finish();
  }
  return by_rows ? of_rows : sum_to_shape(elements, last.sizes());
}

}  // namespace

bool is_of_columns(const Tensor& last, const Tensor& first, int64_t event) {
  return last.sym_sizes() != first.sym_sizes() && last.sym_numel() > 1 &&
         same_for_all_rows(last, event);
}

Tensor sums_and_grads_of_means(const Given& given, double scale, at::ArrayRef<Rows::Result> grads) {
  Tensor out = empty(given.rows(), like(given.first(), given.dtype()));
  if (out.is_meta()) return out;
  if (given.first().numel() == 0) {
    zero_wanted(grads);
    return out.zero_();
  }
  const KernelsFor device(given.first());
  const LikelihoodKernels& kernels = kernels_of(device, given.likelihood);
  const bool by_columns = !grads.empty() && grads.back().wanted && !given.shared().empty() &&
                          is_of_columns(given.last(), given.first(), given.event());
  Pass pass(given, by_columns ? grads.slice(0, grads.size() - 1) : grads);
  const Extent& extent = pass.rows.extent;
  if (grads.empty()) {
    kernels.sum(extent, pass.in, sums_of(out));
  } else if (by_columns) {
    const Tensor columns = at::empty({extent.D}, like(given.first(), at::kDouble));
    kernels.sum_with_grads_and_columns(extent, pass.in, scale, sums_of(out), pass.outputs(),
                                       sums_of(columns));
    grads.back().tensor.copy_(sum_to_shape(pass.rows.by_event(columns), given.last().sizes()));
  } else {
    kernels.sum_with_grads(extent, pass.in, scale, sums_of(out), pass.outputs());
  }
  pass.rows.finish();
  return out;
}

void gradients_of_means(const Given& given, const Tensor& grad, at::ArrayRef<Rows::Result> grads,
                        const Rows::Result& target, const Rows::Result& scale) {
  const KernelsFor device(given.first());
  const LikelihoodKernels& kernels = kernels_of(device, given.likelihood);
  const auto is_wanted = [](const Rows::Result& r) { return r.wanted; };
  if (target.wanted) {
    Pass pass(given, {target});
    kernels.backward_target(pass.rows.extent, pass.rows.upstream(grad), pass.in,
                            pass.rows.output(0));
    pass.rows.finish();
  }
  if (scale.wanted) {
    const Pass pass(given);
    const Tensor per_row = at::empty(grad.sizes(), grad.options());
    kernels.last_rows(pass.rows.extent, pass.in, sums_of(per_row));
    // By the parameter that the scale stands for, of which it has so many logarithms.
    scale.tensor.copy_(
        per_row.mul_(grad).sum().mul_(given.row().logarithms).mul_(pass.numbers.inverse));
  }
  if (grads.back().wanted && !given.shared().empty() &&
      given.last().sizes() != given.first().sizes()) {
    grads.back().tensor.copy_(
        shared_last_grad(kernels, given, grad, grads.slice(0, grads.size() - 1)));
  } else if (std::any_of(grads.begin(), grads.end(), is_wanted)) {
    Pass pass(given, grads);
    kernels.backward(pass.rows.extent, pass.rows.upstream(grad), pass.in, pass.outputs());
    pass.rows.finish();
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gradients_along(
    const Given& given, const Tensor& grad, const std::array<const MaybeTensor*, 3>& directions,
    const MaybeTensor& direction_target) {
  const auto dtype = sum_dtype({grad});
  const Tensor& a = given.first();
  const Tensor& target = given.target;
  const Tensor sums = at::empty_symint(given.rows(), like(grad, dtype));
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
  const LikelihoodInputs in = given.inputs_of(rows, shared.empty() ? Input() : rows.shared(0));
  LikelihoodInputs direction;
  for (size_t i = 0; i < elements; ++i)
    if (place[i] >= 0) direction.parameter[i] = rows.input(place[i]);
  if (place[3] >= 0) direction.target = rows.input(place[3]);
  if (shared.size() == 2) direction.parameter[elements] = rows.shared(1);
  std::array<Output, kMostParameters + 1> outputs;
  for (size_t i = 0; i < results.size(); ++i) outputs[i] = rows.output(i);
  const KernelsFor device(a);
  kernels_of(device, given.likelihood)
      .backward_twice(rows.extent, rows.upstream(grad), in, direction, sums_of(sums),
                      outputs.data());
  for (size_t i = 0; i < count; ++i)
    grads[i] = sum_to_shape(results[i].tensor, given.parameters[i].sizes());
  return {sums, grads[0], grads[1], grads[2], sum_to_shape(results[count].tensor, target.sizes())};
}

}  // namespace fastvae::ops
