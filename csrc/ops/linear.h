// A likelihood with the last linear layers of a network that give its parameters.
#pragma once

#include "likelihood.h"

namespace fastvae::ops {

// The public operator, by the name that messages have.
std::string linear_op(Likelihood likelihood);

// Its parameters that are elements are f(hidden) weight^T + bias, of one layer each: hidden [B, H]
// or [K, B, H], weights [D, H], biases [D] or none. `last` is the one that many elements share.
struct LinearGiven {
  struct Head {
    Tensor weight;
    MaybeTensor bias;
  };

  Likelihood likelihood;
  Tensor hidden;
  c10::SmallVector<Head, 2> heads;
  Tensor target;
  MaybeTensor last, log_library, crow_indices, col_indices;
  Activation activation;

  LinearGiven(Likelihood likelihood, const Tensor& hidden, const Tensor& weight,
              const MaybeTensor& bias, const Tensor& target, const MaybeTensor& second_weight,
              const MaybeTensor& second_bias, const MaybeTensor& last,
              const MaybeTensor& log_library, const MaybeTensor& crow_indices,
              const MaybeTensor& col_indices, Activation activation);

  bool is_sparse() const { return crow_indices.has_value(); }
  bool has_samples() const { return hidden.dim() == 3; }
  c10::SymIntArrayRef rows() const { return hidden.sym_sizes().slice(0, hidden.dim() - 1); }
  c10::SymInt outputs() const { return heads[0].weight.sym_size(0); }
  // The likelihood of the layers' results.
  Given of(at::ArrayRef<Tensor> results, const Tensor& target_of_them) const;
  void check(bool check_target) const;
};

// What a call has gradients of, by its place in masks and results.
enum LinearOperand {
  kHidden,
  kWeight,
  kBias,
  kTarget,
  kSecondWeight,
  kSecondBias,
  kLast,
  kLogLibrary,
  kLinearOperands
};

}  // namespace fastvae::ops
