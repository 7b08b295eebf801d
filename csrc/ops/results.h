// The results of operators: their memory, and the reductions of row sums.
#pragma once

#include "../ops.h"

namespace fastvae::ops {

inline at::TensorOptions like(const Tensor& t, at::ScalarType dtype) {
  return t.options().dtype(dtype);
}
Tensor empty(c10::SymIntArrayRef size, const at::TensorOptions& options);
// A gradient of the shape and order of `input`, or nothing.
Tensor grad_like(const Tensor& input, bool wanted);
// The same, contiguous: in the order of the noise.
Tensor row_major_grad(const Tensor& input, at::ScalarType dtype, bool wanted);
// Whether what is broadcast to rows of `event_dims` dimensions is the same for all of them.
bool same_for_all_rows(const Tensor& t, int64_t event_dims);
// The sum of elements down to a shape that was broadcast to theirs, in an order that the sizes
// alone decide.
Tensor sum_to_shape(const Tensor& elements, at::IntArrayRef shape);
// The value of a 0-d tensor where it can be had without waiting for a device, else `value`.
double host_value(const MaybeTensor& scalar, double value);

}  // namespace fastvae::ops
