#include "kernels.h"

#define FASTVAE_STRING(x) #x
#define FASTVAE_NAME(x) FASTVAE_STRING(x)

namespace fastvae::cpu::CPU_CAPABILITY {

const Kernels kernels = {
    .name = FASTVAE_NAME(CPU_CAPABILITY),
    .reparameterize = reparameterize,
    .reparameterize_backward = reparameterize_backward,
    .gaussian_kl = gaussian_kl,
    .gaussian_kl_backward = gaussian_kl_backward,
    .gaussian_kl_prior = gaussian_kl_prior,
    .gaussian_kl_prior_backward = gaussian_kl_prior_backward,
    .sample_kl = sample_kl,
    .sample_kl_backward = sample_kl_backward,
    .sigmoid_cross_entropy = sigmoid_cross_entropy,
    .sigmoid_cross_entropy_with_grad = sigmoid_cross_entropy_with_grad,
    .sigmoid_cross_entropy_backward = sigmoid_cross_entropy_backward,
    .sigmoid_cross_entropy_backward_target = sigmoid_cross_entropy_backward_target,
    .gaussian_nll = gaussian_nll,
    .gaussian_nll_backward = gaussian_nll_backward,
    .gaussian_nll_backward_target = gaussian_nll_backward_target,
    .gaussian_nll_grad_log_sigma = gaussian_nll_grad_log_sigma,
    .binarize = binarize,
    .evaluate = evaluate,
    .words = words,
};

}  // namespace fastvae::cpu::CPU_CAPABILITY
