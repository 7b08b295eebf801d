#include "generator.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/core/DeviceGuard.h>

#include <mutex>

namespace fastvae::cuda {
namespace {

// torch's kernels use the same generator with the same seed: another key keeps their numbers and
// ours apart.
constexpr uint64_t kOurs = 0x9e3779b97f4a7c15;

}  // namespace

void draw(at::Device device, const std::optional<at::Generator>& generator, const at::Tensor& key,
          Input& input) {
  const c10::DeviceGuard guard(device);  // under capture, a stream of this device is asked for
  auto* source = at::get_generator_or_default<at::CUDAGeneratorImpl>(
      generator, at::cuda::detail::getDefaultCUDAGenerator(device.index()));
  std::lock_guard<std::mutex> lock(source->mutex_);
  const at::PhiloxCudaState state = source->philox_cuda_state(4);
  input.key = {kOurs, 0};
  if (state.captured_) {
    input.seed = reinterpret_cast<const uint64_t*>(state.seed_.ptr);
    input.offset = reinterpret_cast<const uint64_t*>(state.offset_.ptr);
    input.key.offset = state.offset_intragraph_;
  } else {
    input.key.seed ^= static_cast<uint64_t>(state.seed_.val);
    input.key.offset = static_cast<uint64_t>(state.offset_.val);
  }
  input.drawn = reinterpret_cast<uint64_t*>(key.mutable_data_ptr<int64_t>());
}

}  // namespace fastvae::cuda
