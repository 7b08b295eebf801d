#include "rows.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/_assert_async.h>
#include <ATen/ops/aminmax.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "cpu/dispatch.h"
#include "cuda/runtime.h"
#ifdef FASTVAE_CUDA
#include "cuda/generator.h"
#define FASTVAE_DEVICES "CPU and CUDA"
#else
#define FASTVAE_DEVICES "CPU"
#endif

namespace fastvae::ops {
namespace {

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return Dtype::f64;
    case at::kFloat:
      return Dtype::f32;
    case at::kBFloat16:
      return Dtype::bf16;
    case at::kHalf:
      return Dtype::f16;
    case at::kByte:
      return Dtype::u8;
    case at::kBool:
      return Dtype::boolean;
    case at::kShort:
      return Dtype::i16;
    case at::kInt:
      return Dtype::i32;
    case at::kLong:
      return Dtype::i64;
    default:
      TORCH_INTERNAL_ASSERT(false, "unchecked dtype ", t.scalar_type());
  }
}

// Whether the event's elements fill one run of memory, in any order.
bool is_dense(const Tensor& t, int64_t event_dims) {
  c10::SmallVector<std::pair<int64_t, int64_t>, 6> dims;
  for (int64_t i = t.dim() - event_dims; i < t.dim(); ++i)
    if (t.size(i) != 1) dims.emplace_back(t.stride(i), t.size(i));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool same_order(const Tensor& a, const Tensor& b, int64_t event_dims) {
  for (int64_t i = 1; i <= event_dims; ++i)
    if (a.size(-i) != 1 && a.stride(-i) != b.stride(-i)) return false;
  return true;
}

int64_t batch_stride(const Tensor& t, int64_t event_dims) {
  const int64_t leading = t.dim() - event_dims;
  return leading >= 1 ? t.stride(leading - 1) : 0;
}

int64_t sample_stride(const Tensor& t, int64_t event_dims) {
  return t.dim() - event_dims >= 2 ? t.stride(0) : 0;
}

}  // namespace

bool is_row_major(const Tensor& t, int64_t event_dims) {
  int64_t expected = 1;
  for (int64_t i = t.dim() - 1; i >= t.dim() - event_dims; --i) {
    if (t.size(i) == 1) continue;
    if (t.stride(i) != expected) return false;
    expected *= t.size(i);
  }
  return true;
}

void check_floating(const char* op, const char* name, const Tensor& t) {
  TORCH_CHECK_VALUE(is_supported_floating(t), op, ": ", name,
                    " must be float32, float64, bfloat16 or float16, got ", t.scalar_type());
}

void check_target(const char* op, const Tensor& target) {
  TORCH_CHECK_VALUE(is_supported_floating(target) || target.scalar_type() == at::kByte ||
                        target.scalar_type() == at::kBool,
                    op, ": target must be float32, float64, bfloat16, float16, uint8 or bool, got ",
                    target.scalar_type());
}

void check_counts(const char* op, const char* name, const Tensor& counts) {
  const auto dtype = counts.scalar_type();
  TORCH_CHECK_VALUE(is_supported_floating(counts) || dtype == at::kByte || dtype == at::kShort ||
                        dtype == at::kInt || dtype == at::kLong,
                    op, ": ", name, " must be counts in uint8, int16, int32, int64, float32, ",
                    "float64, bfloat16 or float16, got ", dtype);
}

void check_dense(const char* op, const Tensor& target) {
  TORCH_CHECK_VALUE(target.layout() == at::kStrided, op, ": target must be dense, got the layout ",
                    target.layout(), "; to_dense() converts it");
}

void check_batch(const char* op, const char* name, const Tensor& t) {
  TORCH_CHECK_VALUE(t.dim() >= 1, op, ": ", name,
                    " must have a batch dimension, [B, *E], got a 0-d tensor");
}

void check_same_shape(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                      const Tensor& b) {
  TORCH_CHECK_VALUE(a.sym_sizes() == b.sym_sizes(), op, ": ", name_a, " and ", name_b,
                    " must have the same shape, got ", name_a, " ", a.sym_sizes(), " and ", name_b,
                    " ", b.sym_sizes());
}

void check_same_device(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                       const Tensor& b) {
  TORCH_CHECK_VALUE(a.device() == b.device(), op, ": ", name_a, " and ", name_b,
                    " must be on the same device, got ", name_a, " on ", a.device(), " and ",
                    name_b, " on ", b.device());
}

void check_generator(const char* op, const Tensor& input,
                     const std::optional<at::Generator>& generator) {
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

bool check_samples(const char* op, const char* name, const Tensor& logits, const Tensor& target) {
  check_floating(op, name, logits);
  check_batch(op, "target", target);
  check_same_device(op, name, logits, "target", target);
  const auto sizes = logits.sym_sizes();
  const bool has_samples = logits.dim() == target.dim() + 1;
  TORCH_CHECK_VALUE((has_samples ? sizes.slice(1) : sizes) == target.sym_sizes(), op, ": ", name,
                    " must have the shape of target, [B, *E], or [K, B, *E] with samples, got ",
                    name, " ", sizes, " and target ", target.sym_sizes());
  return has_samples;
}

void check_sparse(const char* op, const char* name, const Tensor& logits,
                  const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values) {
  check_floating(op, name, logits);
  for (const Tensor* t : {&crow_indices, &col_indices, &values}) {
    check_same_device(op, name, logits, "a sparse target", *t);
    TORCH_CHECK_VALUE(t->dim() == 1, op, ": a sparse target must have two dimensions, [B, D]");
  }
  TORCH_CHECK_VALUE(
      crow_indices.scalar_type() == at::kLong && col_indices.scalar_type() == at::kLong, op,
      ": the indices of a sparse target must be int64, got ", crow_indices.scalar_type(), " and ",
      col_indices.scalar_type());
  const auto sizes = logits.sym_sizes();
  TORCH_CHECK_VALUE((sizes.size() == 2 || sizes.size() == 3) &&
                        crow_indices.sym_size(0) == sizes[sizes.size() - 2] + 1,
                    op, ": ", name,
                    " must have the shape of a sparse target, [B, D], or [K, B, D] ",
                    "with samples, got ", name, " ", sizes, " and a target of ",
                    crow_indices.sym_size(0) - 1, " rows");
  TORCH_CHECK_VALUE(col_indices.sym_size(0) == values.sym_size(0), op,
                    ": a sparse target must have a column for each value, got ",
                    col_indices.sym_size(0), " columns and ", values.sym_size(0), " values");
  if (!logits.is_cpu()) return;
  const int64_t B = crow_indices.size(0) - 1, D = logits.size(-1), stored = values.size(0);
  const Tensor crow = crow_indices.contiguous(), col = col_indices.contiguous();
  const int64_t *begin = crow.const_data_ptr<int64_t>(), *column = col.const_data_ptr<int64_t>();
  bool fits = begin[0] == 0 && begin[B] == stored;
  for (int64_t b = 0; fits && b < B; ++b) fits = begin[b] <= begin[b + 1] && begin[b + 1] <= stored;
  TORCH_CHECK_VALUE(fits, op,
                    ": crow_indices of a sparse target must rise from 0 to the number of ",
                    "its values, ", stored);
  for (int64_t b = 0; b < B; ++b) {
    int64_t last = -1;
    for (int64_t i = begin[b]; i < begin[b + 1]; last = column[i++])
      TORCH_CHECK_VALUE(last < column[i] && column[i] < D, op, ": the columns of each row of a ",
                        "sparse target must be sorted, without duplicates, and lie between 0 and ",
                        D - 1, ", got ", column[i], last < 0 ? " first" : " after ",
                        last < 0 ? std::string() : std::to_string(last), " in row ", b);
  }
}

void check_shared(const char* op, const char* name_all, const Tensor& all, const char* name,
                  const Tensor& shared) {
  bool fits = shared.dim() <= all.dim();
  for (int64_t i = 1; fits && i <= shared.dim(); ++i)
    fits = shared.sym_size(-i) == 1 || shared.sym_size(-i) == all.sym_size(-i);
  TORCH_CHECK_VALUE(
      fits, op, ": ", name, " must have the shape of ", name_all,
      ", or be broadcast to it (one value, one for each channel or for each row), got ", name, " ",
      shared.sym_sizes(), " and ", name_all, " ", all.sym_sizes());
}

namespace {

// By its indices, int64 [dimensions].
Tensor place_of_first_false(const Tensor& all) {
  return all.logical_not().nonzero()[0].contiguous();
}

double value_at(Tensor values, const Tensor& place) {
  for (int64_t i = 0; i < place.size(0); ++i) values = values.select(0, place[i].item<int64_t>());
  return values.item<double>();
}

at::IntArrayRef numbers_of(const Tensor& place) {
  return {place.const_data_ptr<int64_t>(), static_cast<size_t>(place.size(0))};
}

// That all values lie between `least` and `most`, or an error that says which does not. Compared in
// double, where a bound that float has not is no infinity.
void check_range(const char* op, const char* name, const Tensor& values, double least, double most,
                 const std::string& expected, const char* hint) {
  if (values.is_meta() || values.numel() == 0) return;
  const auto [low, high] = at::aminmax(values);
  if (!values.is_cpu()) {
    at::_assert_async(low.ge(least).logical_and(high.to(at::kDouble).le(most)),
                      std::string(op) + ": " + name + " " + expected);
    return;
  }
  if (low.item<double>() >= least && high.item<double>() <= most) return;
  const Tensor known = values.to(at::kDouble);
  const Tensor bad = place_of_first_false(known.ge(least).logical_and_(known.le(most)));
  TORCH_CHECK_VALUE(false, op, ": ", name, " ", expected, ", got ", value_at(known, bad), " at ",
                    numbers_of(bad), hint);
}

}  // namespace

void check_probabilities(const char* op, const Tensor& target) {
  if (target.is_floating_point())
    check_range(op, "target", target, 0, 1, "must lie in [0, 1]",
                "; leave images of bytes in uint8, which is read as x / 255");
}

void check_not_negative(const char* op, const char* name, const Tensor& counts) {
  check_range(op, name, counts, 0, std::numeric_limits<double>::max(),
              "must be counts, none of them negative", "");
}

void check_not_above(const char* op, const Tensor& counts, const Tensor& total, const char* name) {
  if (counts.is_meta() || counts.numel() == 0) return;
  const Tensor fits = counts.le(total);
  if (!counts.is_cpu()) {
    at::_assert_async(fits.all(), std::string(op) + ": target must lie between 0 and " + name);
    return;
  }
  if (fits.all().item<bool>()) return;
  const Tensor bad = place_of_first_false(fits);
  TORCH_CHECK_VALUE(false, op, ": target must lie between 0 and ", name, ", got ",
                    value_at(counts.expand_as(fits), bad), " with a ", name, " of ",
                    value_at(total.expand_as(fits), bad), " at ", numbers_of(bad));
}

KernelsFor::KernelsFor(const Tensor& t) {
  if (t.is_cpu()) {
#ifdef FASTVAE_EMULATED
    kernels_ = &cuda::kernels;
#else
    kernels_ = &cpu::kernels();
#endif
    return;
  }
#ifdef FASTVAE_CUDA
  if (t.is_cuda()) {
    guard_.reset_device(t.device());
    kernels_ = &cuda::kernels;
    return;
  }
#endif
  TORCH_CHECK(
      false, "fastvae: this build has kernels for ", FASTVAE_DEVICES, " tensors only, got one on ",
      t.device(),
      "; the CUDA kernels are compiled where a CUDA build of PyTorch and nvcc are installed, by "
      "FASTVAE_CUDA=1 pip install --force-reinstall --no-deps --no-cache-dir PATH, with the PATH "
      "of "
      "fastvae's source");
}

namespace {

template <class Numbers>
Noise<Numbers> draw(const Tensor& beside, const std::optional<at::Generator>& generator) {
  Noise<Numbers> noise;
  noise.key = at::empty({2}, beside.options().dtype(at::kLong));
  noise.numbers.kind = std::is_same_v<Numbers, Normal> ? Input::Kind::normal : Input::Kind::uniform;
  if (beside.is_cpu()) {
    // 64 bits of the generator, which torch.manual_seed rules.
    auto* source = at::get_generator_or_default<at::CPUGeneratorImpl>(
        generator, at::detail::getDefaultCPUGenerator());
    {
      std::lock_guard<std::mutex> lock(source->mutex_);
      noise.numbers.key.seed = source->random64();
    }
    int64_t* data = noise.key.template mutable_data_ptr<int64_t>();
    data[0] = static_cast<int64_t>(noise.numbers.key.seed);
    data[1] = 0;
  }
#ifdef FASTVAE_CUDA
  if (beside.is_cuda()) {
    if (beside.numel() == 0) noise.key.zero_();  // no kernel will run
    cuda::draw(beside.device(), generator, noise.key, noise.numbers);
  }
#endif
  return noise;
}

}  // namespace

Noise<Normal> draw_normal(const Tensor& beside, const std::optional<at::Generator>& generator) {
  return draw<Normal>(beside, generator);
}

Noise<Uniform> draw_uniform(const Tensor& beside, const std::optional<at::Generator>& generator) {
  return draw<Uniform>(beside, generator);
}

Normal normal_input(const Tensor& key) {
  const auto* data = reinterpret_cast<const uint64_t*>(key.const_data_ptr<int64_t>());
  Normal input;
  input.kind = Input::Kind::normal;
  if (key.is_cpu()) {
    input.key = {data[0], data[1]};
  } else {
    input.seed = data;
    input.offset = data + 1;
  }
  return input;
}

Input sparse_input(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values) {
  Input input;
  input.kind = Input::Kind::sparse;
  input.dtype = dtype_of(values);
  input.data = values.const_data_ptr();
  input.index = crow_indices.const_data_ptr<int64_t>();
  input.columns = col_indices.const_data_ptr<int64_t>();
  input.rows = values.size(0);
  input.stride_b = 1;  // the number of a row
  return input;
}

Input as_count(Input input) {
  if (input.dtype == Dtype::u8) input.dtype = Dtype::count8;
  return input;
}

Input scalar_input(const Tensor& scalar) {
  Input input;
  input.kind = Input::Kind::row;
  input.dtype = dtype_of(scalar);
  input.data = scalar.const_data_ptr();
  input.value = 1;
  return input;
}

Sums sums_of(const Tensor& sums) { return {dtype_of(sums), sums.mutable_data_ptr()}; }

namespace {

// How many of the event's dimensions a tensor that is broadcast has itself.
int64_t own_event_dims(const Tensor& t, int64_t event_dims) {
  int64_t own = 0;
  for (int64_t i = 1; i <= std::min(event_dims, t.dim()); ++i) own += t.size(-i) != 1;
  return own;
}

bool has_whole_event(const Tensor& t, const Tensor& shaped, int64_t event_dims) {
  if (t.dim() < event_dims) return false;
  for (int64_t i = 1; i <= event_dims; ++i)
    if (t.size(-i) != shaped.size(-i)) return false;
  return true;
}

}  // namespace

Rows::Rows(const Tensor& shaped, int64_t event_dims, RowOrder order, at::ArrayRef<Tensor> inputs,
           at::ArrayRef<Result> outputs, at::ArrayRef<Tensor> shared)
    : extent{1, 1, 1},
      event_dims_(event_dims),
      has_samples_(shaped.dim() - event_dims == 2),
      given_(outputs.begin(), outputs.end()) {
  const int64_t leading = shaped.dim() - event_dims;
  if (leading == 2) extent.K = shaped.size(0);
  if (leading >= 1) extent.B = shaped.size(leading - 1);
  for (int64_t i = leading; i < shaped.dim(); ++i) extent.D *= shaped.size(i);

  bool alike = order == RowOrder::any && is_dense(shaped, event_dims);
  for (const Tensor& t : inputs) alike = alike && same_order(shaped, t, event_dims);
  for (const Result& r : outputs)
    alike = alike && (!r.wanted || same_order(shaped, r.tensor, event_dims));
  for (const Tensor& t : shared)
    alike = alike && (has_whole_event(t, shaped, event_dims) ? same_order(shaped, t, event_dims)
                                                             : own_event_dims(t, event_dims) <= 1);

  for (const Tensor& t : inputs)
    inputs_.push_back(alike || is_row_major(t, event_dims) ? t : t.contiguous());
  for (const Result& r : outputs) {
    const bool in_place = !r.wanted || alike || is_row_major(r.tensor, event_dims);
    outputs_.push_back(
        {in_place ? r.tensor : at::empty(r.tensor.sizes(), r.tensor.options()), r.wanted});
  }
  for (int64_t i = 0; i < event_dims; ++i) {
    event_.push_back(shaped.size(leading + i));
    order_.push_back(i);
  }
  if (alike)
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) {
      return shaped.stride(leading + a) > shaped.stride(leading + b);
    });
  for (const Tensor& t : shared) shared_.push_back(input_of_shared(shaped, t, alike));
}

Tensor Rows::by_event(const Tensor& columns) const {
  std::vector<int64_t> sizes, place(order_.size());
  for (size_t i = 0; i < order_.size(); ++i) {
    sizes.push_back(event_[order_[i]]);
    place[order_[i]] = static_cast<int64_t>(i);
  }
  return columns.view(sizes).permute(place);
}

Input Rows::elements_of(const Tensor& t) const {
  Input input;
  input.kind = Input::Kind::elements;
  input.dtype = dtype_of(t);
  input.data = t.const_data_ptr();
  input.stride_k = sample_stride(t, event_dims_);
  input.stride_b = batch_stride(t, event_dims_);
  return input;
}

Input Rows::input(size_t i) const { return elements_of(inputs_[i]); }

Input Rows::input_of_shared(const Tensor& shaped, Tensor t, bool in_memory) {
  const bool whole = has_whole_event(t, shaped, event_dims_);
  if (whole && !in_memory && !is_row_major(t, event_dims_)) t = t.contiguous();
  shared_tensors_.push_back(t);
  const Tensor wide = t.expand(shaped.sizes());
  Input input = elements_of(wide);
  if (whole) return input;

  // The dimensions that t has must follow one another: then they are one run, each value of it for
  // `inner` elements.
  input.kind = Input::Kind::shared;
  bool begun = false, ended = false;
  for (auto dim = order_.rbegin(); dim != order_.rend(); ++dim) {
    const int64_t size = event_[*dim], stride = wide.stride(shaped.dim() - event_dims_ + *dim);
    if (size == 1) continue;
    const bool own = stride != 0;
    if (own && ended) {
      // One row of them, which all that share it read.
      c10::SmallVector<int64_t, 8> sizes(shaped.dim() - t.dim(), 1);
      sizes.append(t.sizes().begin(), t.sizes().end());
      std::copy(event_.begin(), event_.end(), sizes.end() - event_dims_);
      return input_of_shared(shaped, t.expand(sizes).contiguous(), false);
    }
    if (own && stride != input.count) return input_of_shared(shaped, t.contiguous(), in_memory);
    ended = begun && !own;
    begun = begun || own;
    if (own) input.count *= size;
    if (!begun) input.inner *= size;
  }
  if (input.inner == 1 && input.count == extent.D) input.kind = Input::Kind::elements;
  return input;
}

PerRow Rows::upstream(const Tensor& grad, double weight) const {
  const bool per_row = grad.dim() > 0;
  TORCH_CHECK_VALUE(
      !per_row || (grad.dim() == (has_samples_ ? 2 : 1) && grad.size(-1) == extent.B &&
                   grad.size(0) == (has_samples_ ? extent.K : extent.B)),
      "fastvae: an upstream gradient must have one value for each row, got shape ", grad.sizes());
  PerRow input{scalar_input(grad)};
  input.value = weight;
  if (per_row && has_samples_) input.stride_k = grad.stride(0);
  if (per_row) input.stride_b = grad.stride(-1);
  return input;
}

Output Rows::output(const Tensor& t, bool wanted) const {
  Output output;
  if (!wanted) return output;
  output.dtype = dtype_of(t);
  output.data = t.mutable_data_ptr();
  output.stride_k = sample_stride(t, event_dims_);
  output.stride_b = batch_stride(t, event_dims_);
  return output;
}

Output Rows::output(size_t i) const { return output(outputs_[i].tensor, outputs_[i].wanted); }

void Rows::finish() {
  for (size_t i = 0; i < outputs_.size(); ++i)
    if (!outputs_[i].tensor.is_same(given_[i].tensor)) given_[i].tensor.copy_(outputs_[i].tensor);
}

}  // namespace fastvae::ops
