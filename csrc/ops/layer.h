// A linear layer with its activation, which the operators over networks share.
#pragma once

#include "../ops.h"

namespace fastvae::ops {

// The dtype of the products: `dtype`, but float32 on a CPU without instructions for the smaller
// one, whose products take several times as long there.
at::ScalarType product_dtype(const Tensor& beside, at::ScalarType dtype);

// Memory for rows [N, H] of an operator's own. `padded` on a GPU, where products of rows that do
// not begin at multiples of 16 bytes take up to twice as long: then they do, and the loops between
// the products, which like whole vectors, go over what fills them up too.
Tensor operand_rows(c10::SymInt rows, c10::SymInt width, const at::TensorOptions& options,
                    bool padded);
// Such rows, with what fills them up.
Tensor whole_rows(const Tensor& rows);

// f(a weight^T + bias) into such rows: a [N, H], weight [H', H], bias up to [H'], beyond which it
// is 0, all of one dtype.
void layer(const Tensor& a, const Tensor& weight, const MaybeTensor& bias, Activation f,
           Tensor& out);
// From d/df to d/d(before f), in such rows, and its sum over them, float32 or float64, if that is
// wanted. f's result is `activated`; not read where there is no f.
Tensor layer_backward(const Tensor& grad, const Tensor& activated, Activation f, bool wants_bias);
// grad^T a, in the dtype of `out`; not rounded to that of the product where the device can do
// without.
void weight_grad(const Tensor& grad, const Tensor& a, Tensor& out);

// The same in operations that are differentiable.
Tensor activated(const Tensor& x, Activation f);
Tensor activation_grad(const Tensor& grad, const Tensor& activated, Activation f);

}  // namespace fastvae::ops
