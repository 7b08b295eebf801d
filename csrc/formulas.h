// Every elementwise formula and its derivatives, for both CPU and CUDA: plain functions of scalars
// (float or double), no tensors, no memory, no threads. Results are in nats.
//
// Limits: where an argument is infinite and the limit exists, the result is the limit; a NaN
// argument gives NaN. The branches below are selects, which a compiler turns into masks.
#pragma once

#include "dual.h"

namespace fastvae::formulas {

using math::product_or_zero;

// e^-|l|: the odds of the less likely outcome, of a Bernoulli variable of logit l.
template <class T>
FASTVAE_FN T odds(T l) {
  return math::exp_minus(math::abs(l));
}

// 1 / (1 + e^-l)
template <class T>
FASTVAE_FN T sigmoid(T l, T odds) {
  return math::divide(l < T(0) ? odds : T(1), T(1) + odds);
}

// A term of a sum in parts, weight * size + log(1 + factor), without the product where the weight
// is 0. The sum of the logarithms of many is the logarithm of a product.
template <class T>
struct LogTerm {
  T weight, size, factor;
};

// z = mu + sigma eps, sigma = e^(logvar / 2)
template <class T>
FASTVAE_FN T reparameterize(T mu, T sigma, T eps) {
  return mu + sigma * eps;
}

// sigma, with what the KL divergence needs beside.
template <class T>
FASTVAE_FN math::Exponential<T> standard_deviation(T logvar) {
  return math::exponential_of(T(0.5) * logvar);
}

// dz/dlogvar = sigma eps / 2
template <class T>
FASTVAE_FN T reparameterize_grad_logvar(T sigma, T eps) {
  return T(0.5) * (sigma * eps);
}

// Of the square of a positive number, e^(2 x) from e^x: sums of what is never negative.
template <class T>
FASTVAE_FN math::Exponential<T> squared(math::Exponential<T> e) {
  return {e.value * e.value, e.less_one * (e.less_one + T(2)),
          T(2) * e.less_line + e.less_one * e.less_one};
}

// KL(N(mu, var) || N(0, 1)) = (mu^2 + (var - 1 - logvar)) / 2, two terms that are never negative;
// var is the exponential of logvar.
template <class T>
FASTVAE_FN T gaussian_kl(T mu, math::Exponential<T> var) {
  return T(0.5) * (mu * mu + var.less_line);
}

// d/dmu = mu; d/dlogvar = (var - 1) / 2
template <class T>
FASTVAE_FN T gaussian_kl_grad_mu(T mu) {
  return mu;
}

template <class T>
FASTVAE_FN T gaussian_kl_grad_logvar(math::Exponential<T> var) {
  return T(0.5) * var.less_one;
}

// KL(N(mu, e^logvar) || N(prior_mu, e^prior_logvar)) is the same of ratio = e^(logvar -
// prior_logvar), and of the whitened square of the difference of the means.
template <class T>
struct PriorTerms {
  math::Exponential<T> ratio;
  T whitened, square;  // difference / prior variance; difference * whitened
};

template <class T>
FASTVAE_FN PriorTerms<T> prior_terms(T mu, T logvar, T prior_mu, T prior_logvar) {
  const T difference = mu - prior_mu;
  const T whitened = product_or_zero(difference, math::exp(-prior_logvar));
  return {math::exponential_of(logvar - prior_logvar), whitened,
          product_or_zero(difference, whitened)};
}

template <class T>
FASTVAE_FN T gaussian_kl(PriorTerms<T> t) {
  return T(0.5) * (t.square + t.ratio.less_line);
}

// d/dprior_logvar = (1 - ratio - square) / 2; the others are those of the two arguments above:
// d/dmu = whitened = -d/dprior_mu, d/dlogvar = (ratio - 1) / 2.
template <class T>
FASTVAE_FN T gaussian_kl_grad_prior_logvar(PriorTerms<T> t) {
  return T(-0.5) * (t.ratio.less_one + t.square);
}

// 1 / sigma. Squares of standardised differences neither overflow nor vanish as those of
// differences do.
template <class T>
FASTVAE_FN T inverse_deviation(T logvar) {
  return math::exp(T(-0.5) * logvar);
}

// The loss of a VAE: -ELBO for beta = 1.
template <class T>
FASTVAE_FN T negative_elbo(T reconstruction, T kl, T beta) {
  return reconstruction + beta * kl;
}

// max(x, 0), of NaN NaN; the gradient by its result.
template <class T>
FASTVAE_FN T relu(T x) {
  return x < T(0) ? T(0) : x;
}

template <class T>
FASTVAE_FN T relu_backward(T g, T y) {
  return y <= T(0) ? T(0) : g;
}

// (1 - e^-2|x|) / (1 + e^-2|x|) with the sign of x, by e^-2|x| - 1: nothing cancels where x is
// small. d/dx = 1 - y^2.
template <class T>
FASTVAE_FN T tanh(T x) {
  const T less_one = math::exponential_of(T(-2) * math::abs(x)).less_one;
  const T size = math::divide(-less_one, T(2) + less_one);
  return x < T(0) ? -size : size;
}

template <class T>
FASTVAE_FN T tanh_backward(T g, T y) {
  return g * (T(1) - y * y);
}

// Adam (Kingma & Ba 2014, arXiv:1412.6980, algorithm 1). Either moment is a moving average, with
// `rate` = 1 - beta.
template <class T>
FASTVAE_FN T moving_average(T average, T x, T beta, T rate) {
  return beta * average + rate * x;
}

// 1 - beta^step, by the logarithm of beta: nothing cancels where beta is near 1.
template <class T>
FASTVAE_FN T bias_correction(T log_beta, T step) {
  return -math::exponential_of(log_beta * step).less_one;
}

// With both bias corrections in numbers that all elements share: `size` = lr / (1 - beta1^step),
// `scale` = 1 / sqrt(1 - beta2^step).
template <class T>
FASTVAE_FN T adam(T value, T mean, T square, T size, T scale, T eps) {
  return value - size * math::divide(mean, math::sqrt(square) * scale + eps);
}

// The value of an image's byte, x / 255, to the last bit what a division gives: 0x10101 / 2^24 is
// 1/255 but for 2^-24 of it, and the byte's product with it is exact in float.
FASTVAE_FN float pixel_of_scaled(float product) { return product + product * 0x1p-24f; }
FASTVAE_FN float pixel(float byte) { return pixel_of_scaled(byte * 0x1.0101p-8f); }
FASTVAE_FN double pixel(double byte) { return byte / 255.0; }

// Bernoulli draw: 1 with probability p, for u uniform on [0, 1).
template <class T>
FASTVAE_FN T binarize(T p, T u) {
  return u < p ? T(1) : T(0);
}

// 1 where p is no probability (NaN among them), else 0.
template <class T>
FASTVAE_FN T not_a_probability(T p) {
  return p >= T(0) && p <= T(1) ? T(0) : T(1);
}

}  // namespace fastvae::formulas
