// A step of Adam for all parameters of an optimiser.
#include <string>
#include <vector>

#include "../ops.h"
#include "../rows.h"

namespace fastvae::ops {
namespace {

constexpr const char* kOp = "fastvae.adam_";

std::string place(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

void check_float(const std::string& name, const Tensor& t) {
  TORCH_CHECK_VALUE(t.scalar_type() == at::kFloat, kOp, ": ", name, " must be float32, got ",
                    t.scalar_type());
}

// That `t` lies as the parameter does, element by element.
void check_alike(const std::string& param_name, const Tensor& param, const std::string& name,
                 const Tensor& t) {
  check_float(name, t);
  check_same_device(kOp, param_name.c_str(), param, name.c_str(), t);
  check_same_shape(kOp, param_name.c_str(), param, name.c_str(), t);
  bool alike = true;
  for (int64_t i = 0; i < t.dim(); ++i)
    alike = alike && (t.sym_size(i) == 1 || t.sym_stride(i) == param.sym_stride(i));
  TORCH_CHECK_VALUE(alike, kOp, ": ", name, " must have the strides of ", param_name, ", ",
                    param.sym_strides(), ", got ", t.sym_strides());
}

void check_scalar(const Tensor& param, const std::string& name, const Tensor& t, bool may_be_cpu) {
  TORCH_CHECK_VALUE(t.dim() == 0, kOp, ": ", name, " must be 0-d, got ", t.sym_sizes());
  TORCH_CHECK_VALUE(t.device() == param.device() || (may_be_cpu && t.is_cpu()), kOp, ": ", name,
                    " must be on the device of the parameters, ", param.device(),
                    may_be_cpu ? ", or the CPU" : "", ", got one on ", t.device());
}

}  // namespace

void adam_(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs,
           at::TensorList exp_avg_sqs, at::TensorList steps, const MaybeTensor& lr_tensor,
           double lr, double beta1, double beta2, double eps, double weight_decay, bool maximize) {
  for (const auto& [name, list] :
       {std::pair("grads", grads), std::pair("exp_avgs", exp_avgs),
        std::pair("exp_avg_sqs", exp_avg_sqs), std::pair("steps", steps)})
    TORCH_CHECK_VALUE(list.size() == params.size(), kOp, ": ", name,
                      " must hold one tensor for each parameter, got ", list.size(), " for ",
                      params.size());
  if (params.empty()) return;
  for (size_t i = 0; i < params.size(); ++i) {
    const Tensor& param = params[i];
    const std::string name = place("params", i);
    check_float(name, param);
    check_same_device(kOp, "params[0]", params[0], name.c_str(), param);
    TORCH_CHECK_VALUE(param.is_non_overlapping_and_dense(), kOp, ": ", name,
                      " must be dense, got strides ", param.sym_strides(), " of shape ",
                      param.sym_sizes());
    check_alike(name, param, place("grads", i), grads[i]);
    check_alike(name, param, place("exp_avgs", i), exp_avgs[i]);
    check_alike(name, param, place("exp_avg_sqs", i), exp_avg_sqs[i]);
    check_float(place("steps", i), steps[i]);
    check_scalar(param, place("steps", i), steps[i], true);
  }
  if (lr_tensor.has_value()) {
    check_floating(kOp, "lr_tensor", *lr_tensor);
    check_scalar(params[0], "lr_tensor", *lr_tensor, false);
  }
  if (params[0].is_meta()) return;

  std::vector<Parameter> list;
  list.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    for (const Tensor& t : {params[i], exp_avgs[i], exp_avg_sqs[i]})
      t.unsafeGetTensorImpl()->bump_version();  // autograd refuses what was saved before
    if (params[i].numel() == 0) continue;
    const float* step = steps[i].const_data_ptr<float>();
    const bool is_near = steps[i].device() == params[i].device();
    list.push_back({params[i].numel(), params[i].mutable_data_ptr<float>(),
                    exp_avgs[i].mutable_data_ptr<float>(), exp_avg_sqs[i].mutable_data_ptr<float>(),
                    grads[i].const_data_ptr<float>(), is_near ? step : nullptr,
                    is_near ? 0.0f : *step});
  }
  Input rate;
  rate.value = lr;
  KernelsFor(params[0])->adam(list.data(), static_cast<int64_t>(list.size()),
                              lr_tensor.has_value() ? scalar_input(*lr_tensor) : rate,
                              {beta1, beta2, eps, weight_decay, maximize});
}

}  // namespace fastvae::ops
