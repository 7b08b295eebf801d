// The table of kernels that the operators call on a device, and the arguments of these kernels.
// No torch header is included: the CPU kernels are compiled once per instruction set, the CUDA
// kernels by nvcc.
#pragma once

#include <cstdint>

#include "philox.h"

namespace fastvae {

// uint8 is an image's, read as x / 255, or count8, a number of its own.
enum class Dtype : uint8_t { f64, f32, bf16, f16, u8, boolean, count8, i16, i32, i64 };

// K samples of a batch of B rows (samples of the data) of D elements (the flattened event).
struct Extent {
  int64_t K, B, D;
};

// What a kernel reads for element e of row (k, b).
struct Input {
  enum class Kind : uint8_t {
    elements,  // data[k * stride_k + b * stride_b + e]; uint8 is read as x / 255
    gathered,  // data[index[b] * stride_b + e], likewise; index[b] is one of `rows`
    sparse,    // data[i] for the i from index[b] to before index[b + 1] with columns[i] == e, or 0
    shared,    // data[k * stride_k + b * stride_b + e / inner % count]
    row,       // data[k * stride_k + b * stride_b] * value, the same for the whole row
    constant,  // `value` everywhere; 0 for an upstream gradient that is not there
    normal,    // standard normal number (k * B + b) * D + e of the stream `key`
    uniform,   // likewise, uniform on [0, 1)
  };
  Kind kind = Kind::constant;
  Dtype dtype = Dtype::f32;
  const void* data = nullptr;
  int64_t stride_k = 0, stride_b = 0;
  const int64_t *index = nullptr, *columns = nullptr;
  int64_t rows = 0;  // or how many elements of a sparse input are not 0
  int64_t inner = 1, count = 1;
  double value = 0;
  Key key = {};
  // On a GPU the rest of a stream's key is in device memory: the key is {key.seed ^ *seed,
  // key.offset + *offset}. The kernel leaves it in `drawn`, two words, where that is not null.
  const uint64_t* seed = nullptr;
  const uint64_t* offset = nullptr;
  uint64_t* drawn = nullptr;
};

// What an operand can be is its type, so that a loop has no code for the rest. Plain inputs are
// elements in floating point, or a constant; targets may be uint8 or bool too.
struct Target : Input {};
struct Counts : Input {};    // elements or sparse: integers, or in floating point
struct Gathered : Input {};  // as Target, or rows of it by their numbers
struct Shared : Input {};    // elements, or values that many of them share
struct PerRow : Input {};    // row, or a constant: an upstream gradient of row sums
struct Normal : Input {};
struct Uniform : Input {};

FASTVAE_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Offset of row k * B + b of an input or output, in elements.
template <class Operand>
FASTVAE_FN int64_t row_offset(const Extent& extent, const Operand& operand, int64_t row) {
  // Most calls have one sample; a 64-bit division per row would show at D = 2.
  if (extent.K == 1) return row * operand.stride_b;
  return row / extent.B * operand.stride_k + row % extent.B * operand.stride_b;
}

// Where element e of row (k, b) goes: data[k * stride_k + b * stride_b + e]; nowhere if data is
// null.
struct Output {
  Dtype dtype = Dtype::f32;
  void* data = nullptr;
  int64_t stride_k = 0, stride_b = 0;
};

// A tensor that an optimiser changes where it lies: `size` elements of float32, at least one, in
// one piece, and as many of its gradient and of its moments, in the same order. The number of the
// step is `*step`, or `step_value` where that is null.
struct Parameter {
  int64_t size;
  float *value, *exp_avg, *exp_avg_sq;
  const float *grad, *step;
  float step_value;
};

// What all parameters of a step of Adam share, but for the learning rate.
struct AdamOptions {
  double beta1, beta2, eps, weight_decay;
  bool maximize;
};

// What follows a linear layer.
enum class Activation { none, relu, tanh };

// Row sums [K, B], or sums over all rows [D]: contiguous, float32 or float64; nobody's if data is
// null.
struct Sums {
  Dtype dtype = Dtype::f32;
  void* data = nullptr;
};

constexpr int kMostParameters = 3;

// What the kernels of a likelihood read of each element: its parameters in their order, the last
// one from elements or from what many of them share, and the target. Where two numbers stand for
// the last parameter, they are that one's value and what is found from it once.
struct LikelihoodInputs {
  Input parameter[kMostParameters], target;
  bool has_numbers = false;
  Input number[2];
};

// The passes of a likelihood: row sums of negative log-probabilities and their derivatives, times
// the upstream gradient g. `grads` are those by the parameters, in their order.
struct LikelihoodKernels {
  void (*sum)(Extent, const LikelihoodInputs&, Sums out);
  // The same with the derivatives, times `scale`, written in the same pass: for losses that are
  // scalars.
  void (*sum_with_grads)(Extent, const LikelihoodInputs&, double scale, Sums out,
                         const Output* grads);
  // The same where all rows share the last parameter, whose derivative is a sum over them, [D].
  void (*sum_with_grads_and_columns)(Extent, const LikelihoodInputs&, double scale, Sums out,
                                     const Output* grads, Sums last);
  void (*backward)(Extent, PerRow g, const LikelihoodInputs&, const Output* grads);
  void (*backward_target)(Extent, PerRow g, const LikelihoodInputs&,
                          Output grad_target /* [B, D] */);
  void (*backward_columns)(Extent, PerRow g, const LikelihoodInputs&, const Output* grads,
                           Sums last);
  // Row sums of the derivative by the last parameter, without g, where a row has one, or all have.
  void (*last_rows)(Extent, const LikelihoodInputs&, Sums last);
  // The derivatives of what `backward` and `backward_target` give, along a direction of each: by
  // g, as row sums, and by the parameters and the target.
  void (*backward_twice)(Extent, PerRow g, const LikelihoodInputs&,
                         const LikelihoodInputs& direction, Sums grad_g, const Output* grads);
};

// One implementation of every kernel. `grad_*` inputs are upstream gradients; outputs that nobody
// asked for have no data. Outputs marked [B, D] are summed over the K samples.
struct Kernels {
  const char* name;

  // On the CPU, for the tests: a function of simd_math.h, by name, over an array; the raw words of
  // a stream.
  bool (*evaluate)(const char* function, const float* in, float* out, int64_t n);
  void (*words)(Key, uint64_t first_block, uint32_t* out, int64_t blocks);

  // By Likelihood, in likelihoods.h.
  const LikelihoodKernels* const* likelihood;

  void (*reparameterize)(Extent, Input mu, Input logvar, Normal eps, Output z);
  void (*reparameterize_backward)(Extent, Input grad_z, Input logvar, Normal eps,
                                  Output grad_mu /* [B, D] */, Output grad_logvar /* [B, D] */);

  void (*gaussian_kl)(Extent, Input mu, Input logvar, Sums kl);
  void (*gaussian_kl_backward)(Extent, PerRow grad, Input mu, Input logvar, Output grad_mu,
                               Output grad_logvar);
  void (*gaussian_kl_prior)(Extent, Input mu, Input logvar, Shared prior_mu, Shared prior_logvar,
                            Sums kl);
  void (*gaussian_kl_prior_backward)(Extent, PerRow grad, Input mu, Input logvar, Shared prior_mu,
                                     Shared prior_logvar, Output grad_mu, Output grad_logvar,
                                     Output grad_prior_mu, Output grad_prior_logvar);
  // The same with a prior that all rows share: its gradients are sums over them, [D].
  void (*gaussian_kl_prior_backward_columns)(Extent, PerRow grad, Input mu, Input logvar,
                                             Shared prior_mu, Shared prior_logvar, Output grad_mu,
                                             Output grad_logvar, Sums grad_prior_mu,
                                             Sums grad_prior_logvar);

  void (*sample_kl)(Extent, Input mu, Input logvar, Normal eps, Output z, Sums kl);
  void (*sample_kl_backward)(Extent, Input grad_z, PerRow grad_kl, Input mu, Input logvar,
                             Normal eps, Output grad_mu, Output grad_logvar);

  // Of shares: the row sum of e^(x - max); the logarithms (x - max) + shift, 0 + shift where x is
  // `max`; and from the derivatives by these, of which `total` is the row sum, to those by x,
  // whose shares are e^(x - max - log_sum). grad and out may be the same memory.
  void (*sum_exp)(Extent, Input x, PerRow max, Sums out);
  void (*log_shares)(Extent, Input x, PerRow max, PerRow shift, Output out);
  void (*log_shares_backward)(Extent, Input grad, Input x, PerRow max, PerRow log_sum, PerRow total,
                              Output out);

  // x * factor; nothing is read or written where the factor is 1. x and out are the same memory.
  void (*scale_unless_one)(Extent, PerRow factor, Input x, Output out);

  // From the row sums of both terms, [K, B] and [B]: their totals or means over the rows (and the
  // mean over the samples), and the loss; three scalars.
  void (*elbo)(Extent, Sums reconstruction, Sums kl, Input beta, bool mean, Sums loss,
               Sums total_reconstruction, Sums total_kl);

  // Between the products of a network: its input as numbers; f(x + bias), of which either may be
  // absent; and from d/df to d/dx, by what f gave, with its sums over all rows.
  void (*convert)(Extent, Target x, Output out);
  void (*activate)(Extent, Input x, const Shared* bias, Activation f, Output out);
  void (*activate_backward)(Extent, Input grad, Input activated, Activation f, Output grad_x,
                            Sums grad_bias /* [D] */);

  // One step of `count` parameters.
  void (*adam)(const Parameter* parameters, int64_t count, Input lr, AdamOptions options);

  // Of each row, and of each column over all rows.
  void (*sum_rows)(Extent, Input x, Sums out);
  void (*sum_columns)(Extent, Input x, Sums out);

  // `invalid` counts per row what is no probability.
  void (*binarize)(Extent, Gathered probability, Uniform uniform, Output out, Sums invalid);
};

}  // namespace fastvae
