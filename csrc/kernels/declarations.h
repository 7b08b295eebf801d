// The kernels of one device: an instruction set of the CPU, or CUDA. Each other file of this folder
// says which loop and which formula. It is compiled for every device, over that device's loops, in
// the namespace FASTVAE_DEVICE.
#pragma once

#include <type_traits>

#include "../kernels.h"

// In the order of the table's members.
#define FASTVAE_EACH_KERNEL(_)             \
  _(reparameterize)                        \
  _(reparameterize_backward)               \
  _(gaussian_kl)                           \
  _(gaussian_kl_backward)                  \
  _(gaussian_kl_prior)                     \
  _(gaussian_kl_prior_backward)            \
  _(gaussian_kl_prior_backward_columns)    \
  _(sample_kl)                             \
  _(sample_kl_backward)                    \
  _(sigmoid_cross_entropy)                 \
  _(sigmoid_cross_entropy_with_grad)       \
  _(sigmoid_cross_entropy_backward)        \
  _(sigmoid_cross_entropy_backward_target) \
  _(scale_unless_one)                      \
  _(elbo)                                  \
  _(gaussian_nll)                          \
  _(gaussian_nll_backward)                 \
  _(gaussian_nll_backward_target)          \
  _(gaussian_nll_backward_columns)         \
  _(gaussian_nll_grad_logvar_rows)         \
  _(gaussian_nll_grad_log_sigma)           \
  _(convert)                               \
  _(activate)                              \
  _(activate_backward)                     \
  _(adam)                                  \
  _(sum_rows)                              \
  _(sum_columns)                           \
  _(binarize)

namespace fastvae::FASTVAE_DEVICE {

extern const Kernels kernels;

#define FASTVAE_DECLARE(name) std::remove_pointer_t<decltype(Kernels::name)> name;
FASTVAE_EACH_KERNEL(FASTVAE_DECLARE)
#undef FASTVAE_DECLARE

#define FASTVAE_ENTRY(name) .name = name,

}  // namespace fastvae::FASTVAE_DEVICE
