#include "results.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/sum.h>
#include <c10/core/CPUAllocator.h>

#include "../memory.h"
#include "../rows.h"

namespace fastvae::ops {

namespace {

constexpr c10::DispatchKeySet kCPU(c10::DispatchKey::CPU);

// Below the dispatcher, which takes longer than the rest where a pass has several of them.
Tensor nothing(const Tensor& beside, at::ScalarType dtype) {
  if (!beside.is_cpu()) return at::empty({0}, like(beside, dtype));
  return at::detail::empty_generic({0}, c10::GetCPUAllocator(), kCPU, dtype, std::nullopt);
}

}  // namespace

Tensor empty(c10::SymIntArrayRef size, const at::TensorOptions& options) {
  if (options.device().is_cpu()) {
    const auto known = C10_AS_INTARRAYREF_SLOW(size);
    if (c10::multiply_integers(known) * options.dtype().itemsize() >= kLargeResult)
      return at::detail::empty_generic(known, recycling_allocator(), kCPU,
                                       c10::typeMetaToScalarType(options.dtype()), std::nullopt);
  }
  return at::empty_symint(size, options);
}

Tensor grad_like(const Tensor& input, bool wanted) {
  if (!wanted) return nothing(input, input.scalar_type());
  if (!input.is_cpu() || input.nbytes() < kLargeResult) return at::empty_like(input);
  const Tensor layout = at::empty_like(input, input.options().device(at::kMeta));
  return at::detail::empty_strided_generic(layout.sizes(), layout.strides(), recycling_allocator(),
                                           kCPU, layout.scalar_type());
}

Tensor row_major_grad(const Tensor& input, at::ScalarType dtype, bool wanted) {
  return wanted ? empty(input.sym_sizes(), like(input, dtype)) : nothing(input, dtype);
}

bool same_for_all_rows(const Tensor& t, int64_t event_dims) {
  for (int64_t i = 0; i < t.dim() - event_dims; ++i)
    if (t.size(i) != 1) return false;
  return true;
}

Tensor sum_to_shape(const Tensor& elements, at::IntArrayRef shape) {
  const int64_t dims = elements.dim(), absent = dims - static_cast<int64_t>(shape.size());
  const auto is_summed = [&](int64_t i) { return i < absent || shape[i - absent] == 1; };
  const auto dtype = sum_dtype({elements});
  Tensor sum = elements.contiguous();
  // From the last dimensions to the first, neighbours together.
  for (int64_t end = dims; end > 0;) {
    int64_t begin = end, summed = 1, inner = 1;
    while (begin > 0 && is_summed(begin - 1)) summed *= elements.size(--begin);
    for (int64_t i = end; i < dims; ++i) inner *= is_summed(i) ? 1 : elements.size(i);
    end = begin == end ? end - 1 : begin;
    if (summed == 1) continue;
    int64_t outer = 1;
    for (int64_t i = 0; i < begin; ++i) outer *= elements.size(i);
    const Tensor out = at::empty({outer, inner}, like(sum, dtype));
    const KernelsFor kernels(sum);
    if (out.numel() == 0 || summed == 0) {
      out.zero_();
    } else if (inner == 1) {
      const Rows rows(sum.view({outer, summed}), 1, RowOrder::row_major,
                      {sum.view({outer, summed})});
      kernels->sum_rows(rows.extent, rows.input(0), sums_of(out));
    } else {
      for (int64_t i = 0; i < outer; ++i) {
        const Tensor part = sum.view({outer, summed, inner})[i];
        const Rows rows(part, 1, RowOrder::row_major, {part});
        kernels->sum_columns(rows.extent, rows.input(0), sums_of(out[i]));
      }
    }
    sum = out;
  }
  return sum.view(shape);
}

double host_value(const MaybeTensor& scalar, double value) {
  return scalar.has_value() && scalar->is_cpu() ? scalar->item<double>() : value;
}

Reduction parse_reduction(const char* op, c10::string_view name) {
  if (name == "none") return Reduction::none;
  if (name == "mean") return Reduction::mean;
  TORCH_CHECK_VALUE(name == "sum", op, ": reduction must be 'none', 'mean' or 'sum', got '", name,
                    "'");
  return Reduction::sum;
}

Activation parse_activation(const char* op, std::optional<c10::string_view> name) {
  if (!name.has_value()) return Activation::none;
  if (*name == "relu") return Activation::relu;
  TORCH_CHECK_VALUE(*name == "tanh", op, ": activation must be None, 'relu' or 'tanh', got '",
                    *name, "'");
  return Activation::tanh;
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

}  // namespace fastvae::ops
