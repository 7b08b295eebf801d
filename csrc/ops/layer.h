// A linear layer with its activation: what operators over networks have in common.
#pragma once

#include "../ops.h"

namespace fastvae::ops {

// The dtype of the products: `dtype`, but float32 on a CPU without instructions for the smaller
// one, whose products take several times as long there.
at::ScalarType product_dtype(const Tensor& beside, at::ScalarType dtype);

// f(a weight^T + bias) into `out`: a [N, H], weight [H', H], all of one dtype.
void layer(const Tensor& a, const Tensor& weight, const MaybeTensor& bias, Activation f,
           Tensor& out);
// From d/df to d/d(before f), where it lies, and its sum over the rows, float32 or float64, if that
// is defined. f's result is `activated`; not read where there is no f.
void layer_backward(Tensor& grad, const Tensor& activated, Activation f, const Tensor& grad_bias);
// grad^T a, in the dtype of `out`; not rounded to that of the product where the device can do
// without.
void weight_grad(const Tensor& grad, const Tensor& a, Tensor& out);

// The same in operations that are differentiable.
Tensor activated(const Tensor& x, Activation f);
Tensor activation_grad(const Tensor& grad, const Tensor& activated, Activation f);

}  // namespace fastvae::ops
