// The CPU kernels of one instruction set. Every file here but dispatch.cpp and parallel.cpp is
// compiled once per set, with CPU_CAPABILITY its name.
#pragma once

#include <type_traits>

#include "../kernels.h"

namespace fastvae::cpu {

#ifdef CPU_CAPABILITY
namespace CPU_CAPABILITY {

extern const Kernels kernels;

template <class Pointer>
using Function = std::remove_pointer_t<Pointer>;

Function<decltype(Kernels::reparameterize)> reparameterize;
Function<decltype(Kernels::reparameterize_backward)> reparameterize_backward;
Function<decltype(Kernels::gaussian_kl)> gaussian_kl;
Function<decltype(Kernels::gaussian_kl_backward)> gaussian_kl_backward;
Function<decltype(Kernels::gaussian_kl_prior)> gaussian_kl_prior;
Function<decltype(Kernels::gaussian_kl_prior_backward)> gaussian_kl_prior_backward;
Function<decltype(Kernels::sample_kl)> sample_kl;
Function<decltype(Kernels::sample_kl_backward)> sample_kl_backward;
Function<decltype(Kernels::sigmoid_cross_entropy)> sigmoid_cross_entropy;
Function<decltype(Kernels::sigmoid_cross_entropy_with_grad)> sigmoid_cross_entropy_with_grad;
Function<decltype(Kernels::sigmoid_cross_entropy_backward)> sigmoid_cross_entropy_backward;
Function<decltype(Kernels::sigmoid_cross_entropy_backward_target)>
    sigmoid_cross_entropy_backward_target;
Function<decltype(Kernels::gaussian_nll)> gaussian_nll;
Function<decltype(Kernels::gaussian_nll_backward)> gaussian_nll_backward;
Function<decltype(Kernels::gaussian_nll_backward_target)> gaussian_nll_backward_target;
Function<decltype(Kernels::gaussian_nll_grad_log_sigma)> gaussian_nll_grad_log_sigma;
Function<decltype(Kernels::binarize)> binarize;
Function<decltype(Kernels::evaluate)> evaluate;
Function<decltype(Kernels::words)> words;

}  // namespace CPU_CAPABILITY
#endif

}  // namespace fastvae::cpu
