// Noise keys from torch's CUDA generator.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>

#include "../kernels.h"

namespace fastvae::cuda {

// Sets `input` to read a new stream of the generator, or of the device's default one, and to leave
// its key in `key`. Under graph capture the stream's number is in device memory, where each replay
// finds another.
void draw(at::Device device, const std::optional<at::Generator>& generator, const at::Tensor& key,
          Input& input);

}  // namespace fastvae::cuda
