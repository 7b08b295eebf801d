// The operators, as torch sees them. library.cpp has their schemas, and ops/NAME.cpp the checks,
// the allocation, the dispatch to a device's kernels, and the autograd Function of each. NAME is
// the public operator, NAME_forward and NAME_backward are its parts below autograd. Their checks
// and allocation run on meta tensors too: under torch.compile the same bad input gets the same
// error.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <array>
#include <optional>
#include <tuple>

#include "kernels.h"

namespace fastvae::ops {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using MaybeGenerator = std::optional<at::Generator>;
using MaybeTensors = c10::List<std::optional<Tensor>>;

// How the per-sample values [B] or [K, B] become the result.
enum class Reduction { none, mean, sum };
Reduction parse_reduction(const char* op, c10::string_view name);
Tensor reduce(const Tensor& rows, Reduction reduction);

Activation parse_activation(const char* op, std::optional<c10::string_view> name);

// uint8 images as numbers in [0, 1], bool as 0 and 1; the rest as it is.
Tensor target_values(const Tensor& target, at::ScalarType dtype);
// Dtype of row sums: double where any input is, else float.
at::ScalarType sum_dtype(std::initializer_list<MaybeTensor> inputs);

// Outputs that a mask leaves out come back empty. `key` is int64 [2]: the seed and offset of the
// noise stream that the forward pass drew. `unique` is not read: it is a tensor of its own for each
// call that is traced, without which two draws from the same inputs would look like one to the
// elimination of common subexpressions.

std::tuple<Tensor, Tensor> reparameterize_forward(const Tensor& mu, const Tensor& logvar,
                                                  std::optional<c10::SymInt> num_samples,
                                                  MaybeGenerator generator,
                                                  const MaybeTensor& unique);
std::tuple<Tensor, Tensor> reparameterize_backward(const Tensor& grad_z, const Tensor& logvar,
                                                   const Tensor& key, std::array<bool, 2> mask);

// Standard normals 0, 1, 2, ... of the stream `key`.
Tensor normal(const Tensor& key, c10::SymIntArrayRef size, at::ScalarType dtype);

Tensor gaussian_kl_forward(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                           const MaybeTensor& prior_logvar);
// Of `weight` times the rows, or their sum or mean: `grad` is that of each row or of the one
// number.
std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_backward(
    const Tensor& grad, const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
    const MaybeTensor& prior_logvar, double weight, bool mean, std::array<bool, 4> mask);

std::tuple<Tensor, Tensor, Tensor> sample_kl_forward(const Tensor& mu, const Tensor& logvar,
                                                     MaybeGenerator generator,
                                                     const MaybeTensor& unique);
std::tuple<Tensor, Tensor> sample_kl_backward(const MaybeTensor& grad_z, const MaybeTensor& grad_kl,
                                              const Tensor& mu, const Tensor& logvar,
                                              const Tensor& key, std::array<bool, 2> mask);

// The means and log variances that an encoder packed along dimension 1.
std::pair<Tensor, Tensor> halves(const Tensor& moments);
// The gradient of both in one tensor.
Tensor sample_kl_packed_backward(const MaybeTensor& grad_z, const MaybeTensor& grad_kl,
                                 const Tensor& moments, const Tensor& key);

// A likelihood by its name in likelihoods.h, of up to three parameters a, b and c. The last one may
// be absent: then `scale`, 0-d, or else scale_value stands for it. of_shares: `a` is the logits of
// the shares of a library, whose logarithm log_library, [B] or [K, B], is, or 0 where that is
// absent. With indices the target is the values of [B, D] in compressed rows. check_target: whether
// to look for a target that cannot be. The masks of the gradients are of the parameters, then of
// the target and the scale, then of log_library.
Tensor nll_forward(c10::string_view likelihood, const Tensor& a, const MaybeTensor& b,
                   const MaybeTensor& c, const Tensor& target, const MaybeTensor& scale,
                   double scale_value, bool of_shares, const MaybeTensor& log_library,
                   const MaybeTensor& crow_indices, const MaybeTensor& col_indices,
                   bool check_target);
// The same and the gradients of its sum or mean over the rows, in one pass.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nll_with_grads(
    c10::string_view likelihood, const Tensor& a, const MaybeTensor& b, const MaybeTensor& c,
    const Tensor& target, const MaybeTensor& scale, double scale_value, bool of_shares,
    const MaybeTensor& log_library, const MaybeTensor& crow_indices, const MaybeTensor& col_indices,
    bool mean, std::array<bool, 4> mask, bool check_target);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> nll_backward(
    const Tensor& grad, c10::string_view likelihood, const Tensor& a, const MaybeTensor& b,
    const MaybeTensor& c, const Tensor& target, const MaybeTensor& scale, double scale_value,
    bool of_shares, const MaybeTensor& log_library, const MaybeTensor& crow_indices,
    const MaybeTensor& col_indices, std::array<bool, 6> mask);
// The gradients of that one's results, along a direction of each, by its upstream gradient, the
// parameters and the target.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nll_backward_twice(
    const Tensor& grad, c10::string_view likelihood, const Tensor& a, const MaybeTensor& b,
    const MaybeTensor& c, const Tensor& target, const MaybeTensor& direction_a,
    const MaybeTensor& direction_b, const MaybeTensor& direction_c,
    const MaybeTensor& direction_target);
// Scales it where it lies; there is nothing to do, and nobody waits to know, where the factor is 1.
void scale_grad(const Tensor& grad, const Tensor& factor);

// nll of parameters that are f(hidden) weight^T + bias, of one layer each: hidden [B, H] or
// [K, B, H], weights [D, H], target of D elements, f the activation by its number; `last` is the
// parameter that elements share. The masks and gradients are of hidden, weight, bias, target,
// second_weight, second_bias, last and log_library. The forward pass gives the results of one layer
// too if it is to `keep` them; without them the backward pass computes them again.
std::tuple<Tensor, Tensor> linear_nll_forward(
    c10::string_view likelihood, const Tensor& hidden, const Tensor& weight,
    const MaybeTensor& bias, const Tensor& target, const MaybeTensor& second_weight,
    const MaybeTensor& second_bias, const MaybeTensor& last, const MaybeTensor& log_library,
    const MaybeTensor& crow_indices, const MaybeTensor& col_indices, int64_t activation, bool keep,
    bool check_target);
std::tuple<Tensor, std::vector<Tensor>> linear_nll_with_grads(
    c10::string_view likelihood, const Tensor& hidden, const Tensor& weight,
    const MaybeTensor& bias, const Tensor& target, const MaybeTensor& second_weight,
    const MaybeTensor& second_bias, const MaybeTensor& last, const MaybeTensor& log_library,
    const MaybeTensor& crow_indices, const MaybeTensor& col_indices, int64_t activation, bool mean,
    std::array<bool, 8> mask, bool check_target);
std::vector<Tensor> linear_nll_backward(
    const Tensor& grad, c10::string_view likelihood, const Tensor& hidden, const Tensor& weight,
    const MaybeTensor& bias, const Tensor& target, const MaybeTensor& second_weight,
    const MaybeTensor& second_bias, const MaybeTensor& last, const MaybeTensor& log_library,
    const MaybeTensor& crow_indices, const MaybeTensor& col_indices, int64_t activation,
    const MaybeTensor& logits, std::array<bool, 8> mask);

// A network of linear layers, of weights [H', H] and biases [H'] or none, with an activation f, by
// its number, between them; products in `dtype`. If it is to `keep` them, the forward pass gives
// what each layer took, and the weights, as far as they are not the inputs themselves: then these
// are empty. `padded`: see layer.h. The mask is of x, the weights and the biases, as is the result.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> mlp_forward(
    const Tensor& x, at::TensorList weights, const MaybeTensors& biases, int64_t activation,
    at::ScalarType dtype, bool keep, bool padded);
std::vector<Tensor> mlp_backward(const Tensor& grad, const Tensor& x, at::TensorList weights,
                                 at::TensorList taken, at::TensorList rounded, int64_t activation,
                                 const c10::List<bool>& mask);

// beta: the 0-d tensor, or else beta_value. grad_logits is d reconstruction / d logits if asked
// for.
std::tuple<Tensor, Tensor, Tensor, Tensor> elbo_loss_forward(
    const Tensor& logits, const Tensor& target, const Tensor& mu, const Tensor& logvar,
    const MaybeTensor& beta, double beta_value, c10::string_view reduction, bool with_grad,
    bool check_target);

Tensor binarize_forward(const Tensor& images, const MaybeTensor& index, at::ScalarType dtype,
                        MaybeGenerator generator, const MaybeTensor& unique);

// One step of Adam (Kingma & Ba 2014, arXiv:1412.6980, algorithm 1) of float32 parameters, which
// lie as their gradients and moments do. The steps, 0-d, on the same device or the CPU, count this
// one already. The learning rate is lr_tensor, 0-d, or else lr; weight_decay times the parameter is
// added to its gradient.
void adam_(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs,
           at::TensorList exp_avg_sqs, at::TensorList steps, const MaybeTensor& lr_tensor,
           double lr, double beta1, double beta2, double eps, double weight_decay, bool maximize);

// The public operators.

Tensor reparameterize(const Tensor& mu, const Tensor& logvar,
                      std::optional<c10::SymInt> num_samples, MaybeGenerator generator);
Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                   const MaybeTensor& prior_logvar, c10::string_view reduction);
std::tuple<Tensor, Tensor> sample_kl(const Tensor& mu, const Tensor& logvar,
                                     MaybeGenerator generator);
std::tuple<Tensor, Tensor> sample_kl_packed(const Tensor& moments, MaybeGenerator generator);
Tensor nll(c10::string_view likelihood, const Tensor& a, const Tensor& target,
           c10::string_view reduction, bool check_target, const MaybeTensor& b,
           const MaybeTensor& c, const MaybeTensor& scale, double scale_value,
           const MaybeTensor& log_library, const MaybeTensor& crow_indices,
           const MaybeTensor& col_indices);
Tensor linear_nll(c10::string_view likelihood, const Tensor& hidden, const Tensor& weight,
                  const MaybeTensor& bias, const Tensor& target, c10::string_view reduction,
                  bool check_target, std::optional<c10::string_view> activation,
                  const MaybeTensor& second_weight, const MaybeTensor& second_bias,
                  const MaybeTensor& last, const MaybeTensor& log_library,
                  const MaybeTensor& crow_indices, const MaybeTensor& col_indices);
// Products in `dtype`, or in that of the weights.
Tensor mlp(const Tensor& x, at::TensorList weights, const MaybeTensors& biases,
           std::optional<c10::string_view> activation, std::optional<at::ScalarType> dtype);
std::tuple<Tensor, Tensor, Tensor> elbo_loss(const Tensor& logits, const Tensor& target,
                                             const Tensor& mu, const Tensor& logvar,
                                             const MaybeTensor& beta, double beta_value,
                                             c10::string_view reduction, bool check_target);
Tensor binarize(const Tensor& images, MaybeGenerator generator, const MaybeTensor& index,
                at::ScalarType dtype);

}  // namespace fastvae::ops
