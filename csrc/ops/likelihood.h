// Likelihoods by their rows of the table, for the operators that have one as a part.
#pragma once

#include <functional>

#include "../likelihoods.h"
#include "../rows.h"
#include "autograd.h"

namespace fastvae::ops {

// Of a device, and what they take where `elements` parameters and the target are the first inputs
// of `rows`.
const LikelihoodKernels& kernels_of(const KernelsFor& kernels, Likelihood likelihood);
LikelihoodInputs inputs_of(const Rows& rows, Likelihood likelihood, size_t elements = 1);

// Row sums of a likelihood of one parameter, checked, and in the same pass `scale` times their
// gradient where grad is defined.
Tensor likelihood_rows(Likelihood likelihood, const Tensor& parameter, const Tensor& target,
                       double scale, const Tensor& grad);

// Its gradients by its parameter and its target as operations that are differentiable.
std::pair<Tensor, Tensor> differentiable_grads(Likelihood likelihood, const Tensor& grad,
                                               const Tensor& parameter, const Tensor& target,
                                               std::array<bool, 2> wanted);

// The gradients of such a likelihood by its parameter and its target, as far as they are wanted;
// `per_row()` is the upstream gradient, [B] or [K, B], and `factor` that of what the forward pass
// wrote, if it did.
std::pair<Tensor, Tensor> likelihood_grads(AutogradContext* ctx, Likelihood likelihood,
                                           const std::function<Tensor()>& per_row,
                                           const Tensor& factor, const Tensor& parameter,
                                           const Tensor& target, std::array<bool, 2> wanted);

}  // namespace fastvae::ops
