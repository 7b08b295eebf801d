// The CPU kernels of one instruction set. Every file here but dispatch.cpp and parallel.cpp is
// compiled once per set, with CPU_CAPABILITY its name.
#pragma once

#include "../kernels.h"

namespace fastvae::cpu {

#ifdef CPU_CAPABILITY
namespace CPU_CAPABILITY {

extern const Kernels kernels;

void reparameterize(Extent, Input mu, Input logvar, Input eps, Output z);
void reparameterize_backward(Extent, Input grad_z, Input logvar, Input eps, Output grad_mu,
                             Output grad_logvar);
void gaussian_kl(Extent, Input mu, Input logvar, Sums kl);
void gaussian_kl_backward(Extent, Input grad, Input mu, Input logvar, Output grad_mu,
                          Output grad_logvar);
void gaussian_kl_prior(Extent, Input mu, Input logvar, Input prior_mu, Input prior_logvar, Sums kl);
void gaussian_kl_prior_backward(Extent, Input grad, Input mu, Input logvar, Input prior_mu,
                                Input prior_logvar, Output grad_mu, Output grad_logvar,
                                Output grad_prior_mu, Output grad_prior_logvar);
void sample_kl(Extent, Input mu, Input logvar, Input eps, Output z, Sums kl);
void sample_kl_backward(Extent, Input grad_z, Input grad_kl, Input mu, Input logvar, Input eps,
                        Output grad_mu, Output grad_logvar);
void sigmoid_cross_entropy(Extent, Input logits, Input target, Sums out);
void sigmoid_cross_entropy_with_grad(Extent, Input logits, Input target, double scale, Sums out,
                                     Output grad_logits);
void sigmoid_cross_entropy_backward(Extent, Input grad, Input logits, Input target,
                                    Output grad_logits);
void sigmoid_cross_entropy_backward_target(Extent, Input grad, Input logits, Output grad_target);
void gaussian_nll(Extent, Input mean, Input target, Input logvar, const Input* precision, Sums out);
void gaussian_nll_backward(Extent, Input grad, Input mean, Input target, Input logvar,
                           const Input* precision, Output grad_mean, Output grad_logvar);
void gaussian_nll_backward_target(Extent, Input grad, Input mean, Input target, Input logvar,
                                  const Input* precision, Output grad_target);
void binarize(Extent, Input probability, Input uniform, Output out, Sums invalid);
bool evaluate(const char* function, const float* in, float* out, int64_t n);
void words(Key, uint64_t first_block, uint32_t* out, int64_t blocks);

}  // namespace CPU_CAPABILITY
#endif

}  // namespace fastvae::cpu
