#include "dispatch.h"

#include <ATen/Version.h>

namespace fastvae::cpu {

#define FASTVAE_SET(name)       \
  namespace name {              \
  extern const Kernels kernels; \
  }
FASTVAE_SET(DEFAULT)
#ifdef FASTVAE_X86
FASTVAE_SET(AVX2)
FASTVAE_SET(AVX512)
#endif
#undef FASTVAE_SET

namespace {

const std::vector<const Kernels*>& sets() {
  static const std::vector<const Kernels*> all = {
      &DEFAULT::kernels,
#ifdef FASTVAE_X86
      &AVX2::kernels,
      &AVX512::kernels,
#endif
  };
  return all;
}

const Kernels& choose() {
  const std::string capability = at::get_cpu_capability();
  for (const Kernels* set : sets())
    if (capability == set->name) return *set;
  return *sets().front();  // another architecture's name for its own vectors
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::vector<std::string> compiled() {
  std::vector<std::string> names;
  for (const Kernels* set : sets()) names.emplace_back(set->name);
  return names;
}

bool multiplies(at::ScalarType dtype) {
#ifdef FASTVAE_X86
  if (dtype == at::kBFloat16) return __builtin_cpu_supports("avx512bf16");
#endif
  return dtype != at::kHalf;
}

}  // namespace fastvae::cpu
