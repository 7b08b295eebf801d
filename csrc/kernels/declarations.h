// The kernels of one device: an instruction set of the CPU, or CUDA. The other files of this folder
// say which loop runs which formula. Each is compiled for every device, with the loops of that
// device, in the namespace FASTVAE_DEVICE.
#pragma once

#include <type_traits>

#include "../kernels.h"

// In the order of the table's members.
#define FASTVAE_EACH_KERNEL(_)          \
  _(reparameterize)                     \
  _(reparameterize_backward)            \
  _(gaussian_kl)                        \
  _(gaussian_kl_backward)               \
  _(gaussian_kl_prior)                  \
  _(gaussian_kl_prior_backward)         \
  _(gaussian_kl_prior_backward_columns) \
  _(sample_kl)                          \
  _(sample_kl_backward)                 \
  _(sum_exp)                            \
  _(log_shares)                         \
  _(log_shares_backward)                \
  _(scale_unless_one)                   \
  _(elbo)                               \
  _(convert)                            \
  _(activate)                           \
  _(activate_backward)                  \
  _(adam)                               \
  _(sum_rows)                           \
  _(sum_columns)                        \
  _(binarize)

namespace fastvae::FASTVAE_DEVICE {

extern const Kernels kernels;

#define FASTVAE_DECLARE(name) std::remove_pointer_t<decltype(Kernels::name)> name;
FASTVAE_EACH_KERNEL(FASTVAE_DECLARE)
#undef FASTVAE_DECLARE

#define FASTVAE_ENTRY(name) .name = name,

}  // namespace fastvae::FASTVAE_DEVICE
