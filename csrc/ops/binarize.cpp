#include <ATen/ops/_assert_async.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/sum.h>

#include "../rows.h"
#include "autograd.h"
#include "results.h"

namespace fastvae::ops {
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

Tensor binarize(const Tensor& images, MaybeGenerator generator, const MaybeTensor& index,
                at::ScalarType dtype) {
  TORCH_CHECK_VALUE(
      !at::isFloatingType(dtype) || !((at::GradMode::is_enabled() && images.requires_grad()) ||
                                      images._fw_grad(/*level=*/0).defined()),
      "fastvae.binarize: images must not require a gradient: a draw has no derivative");
  return call<binarize_forward>("fastvae::binarize_forward", images, index, dtype, generator,
                                unique_if_traced(images));
}

}  // namespace fastvae::ops
