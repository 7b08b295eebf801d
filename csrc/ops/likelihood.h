// Likelihoods by their rows of the table, for the operators that include one.
#pragma once

#include <algorithm>
#include <functional>

#include "../likelihoods.h"
#include "../rows.h"
#include "autograd.h"

namespace fastvae::ops {

inline const likelihoods::Row& row_of(Likelihood likelihood) {
  return likelihoods::table[static_cast<size_t>(likelihood)];
}
Likelihood likelihood_of(c10::string_view name);
// Whether the first parameter that a call was given is the logits of shares.
inline bool is_of_shares(Likelihood likelihood, const MaybeTensor& log_library) {
  return row_of(likelihood).shares == likelihoods::Shares::always || log_library.has_value();
}

// Rows k .. k + samples of the samples and b .. b + batch of the batch.
struct Part {
  int64_t k, samples, b, batch;

  // The same of a tensor [.., K, B, *E] that is broadcast along any of these.
  Tensor of(const Tensor& t, int64_t event_dims) const;
};

// K samples of B rows cut into parts of about `most` rows: whole batches of some samples, or of one
// sample a multiple of `step` rows.
class Parts {
 public:
  Parts(int64_t K, int64_t B, int64_t most, int64_t step)
      : K_(K),
        B_(B),
        batch_(std::max<int64_t>(1, B <= most ? B : std::max(most, step) / step * step)),
        samples_(std::max<int64_t>(1, std::min(K, most / batch_))) {}

  int64_t rows() const { return samples_ * batch_; }
  int64_t count() const { return ceil_div(K_, samples_) * ceil_div(B_, batch_); }

  template <class F>
  void for_each(const F& f) const {
    for (int64_t k = 0; k < K_; k += samples_)
      for (int64_t b = 0; b < B_; b += batch_)
        f(Part{k, std::min(samples_, K_ - k), b, std::min(batch_, B_ - b)});
  }

 private:
  int64_t K_, B_, batch_, samples_;
};

// Elements of a block that stays in the cache between its passes. On a CPU as float32 they fit the
// last cache that a core has to itself; on a GPU, where none stays and the longer a call is the
// faster, they are a quarter of all, between these bytes.
constexpr int64_t kBlockElements = int64_t{1} << 19;
constexpr int64_t kCudaLeastBytes = int64_t{64} << 20, kCudaMostBytes = int64_t{256} << 20;
int64_t block_elements(const Tensor& beside, int64_t all, int64_t element_size);

// A call's likelihood: its parameters, of which the last one is absent where `scale` or else
// scale_value stands for it, and its target. That is [B, *E], or where crow_indices and col_indices
// are there, the values of [B, D] in compressed rows.
struct Given {
  Likelihood likelihood;
  c10::SmallVector<Tensor, kMostParameters> parameters;
  Tensor target;
  MaybeTensor scale;
  double scale_value;
  bool of_shares;  // the first parameter is the logits of shares of a library
  MaybeTensor log_library, crow_indices, col_indices;

  Given(Likelihood likelihood, const Tensor& a, const MaybeTensor& b, const MaybeTensor& c,
        const Tensor& target, const MaybeTensor& scale = {}, double scale_value = 1,
        bool of_shares = false, const MaybeTensor& log_library = {},
        const MaybeTensor& crow_indices = {}, const MaybeTensor& col_indices = {});

  const likelihoods::Row& row() const { return row_of(likelihood); }
  const Tensor& first() const { return parameters[0]; }
  bool is_sparse() const { return crow_indices.has_value(); }
  int64_t event() const { return is_sparse() ? 1 : target.dim() - 1; }
  bool has_samples() const { return first().dim() > event() + 1; }
  c10::SymIntArrayRef rows() const { return first().sym_sizes().slice(0, has_samples() ? 2 : 1); }
  bool by_scale() const { return parameters.size() < size_t(row().count); }
  // How many parameters are elements: not the last one, if it may be in another shape.
  size_t elements() const {
    return parameters.size() - (row().last_is_shared && !by_scale() ? 1 : 0);
  }
  const Tensor& last() const { return parameters.back(); }
  at::ArrayRef<Tensor> shared() const { return at::ArrayRef<Tensor>(parameters).slice(elements()); }
  at::ScalarType dtype() const;

  // Parameters that are elements, and the target where that is too.
  c10::SmallVector<Tensor, 8> inputs() const;
  // What the kernels take, of rows whose first inputs are those, and of the last parameter.
  LikelihoodInputs inputs_of(const Rows& rows, const Input& last) const;

  Given part(const Part& part) const;
  void check(const char* op, bool check_target) const;
};

// Whether all rows share the last parameter, more than one number, so that its derivative is a sum
// over them.
bool is_of_columns(const Tensor& last, const Tensor& first, int64_t event);

// Gradients of sums over nothing. What is not wanted is no output, and may be an input.
inline void zero_wanted(at::ArrayRef<Rows::Result> grads) {
  for (const Rows::Result& r : grads)
    if (r.wanted) r.tensor.zero_();
}

// Row sums, and in the same pass `scale` times the gradients by the parameters where there are
// some, and by log_library. Those by parameters that are elements may take the place of these.
Tensor sums_and_grads(const Given& given, double scale, at::ArrayRef<Rows::Result> grads,
                      const Rows::Result& library = {});
// The gradients as far as they are wanted; `grad` is that of the rows. Those by parameters that are
// elements may take the place of these, as above.
void gradients(const Given& given, const Tensor& grad, at::ArrayRef<Rows::Result> grads,
               const Rows::Result& target = {}, const Rows::Result& scale = {},
               const Rows::Result& library = {});
// Those of `gradients`, of log means, along a direction of each parameter and of the target, by
// `grad`, the parameters and the target, as sums.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gradients_along(
    const Given& given, const Tensor& grad, const std::array<const MaybeTensor*, 3>& directions,
    const MaybeTensor& direction_target);

// The same of log means alone, which the former find from shares part by part.
Tensor sums_and_grads_of_means(const Given& given, double scale, at::ArrayRef<Rows::Result> grads);
void gradients_of_means(const Given& given, const Tensor& grad, at::ArrayRef<Rows::Result> grads,
                        const Rows::Result& target, const Rows::Result& scale);

// The gradients of the rows as differentiable operations, as far as they are wanted: by the three
// parameters, the target, the scale and log_library.
std::array<Tensor, 6> differentiable_gradients(const Given& given, const Tensor& grad,
                                               std::array<bool, 6> wanted);

// The gradients of a likelihood of one parameter by that and by its target, as far as they are
// wanted; `per_row()` is the upstream gradient, [B] or [K, B], and `factor` that of what the
// forward pass wrote, if it did.
std::pair<Tensor, Tensor> likelihood_grads(AutogradContext* ctx, Likelihood likelihood,
                                           const std::function<Tensor()>& per_row,
                                           const Tensor& factor, const Tensor& parameter,
                                           const Tensor& target, std::array<bool, 2> wanted);

}  // namespace fastvae::ops
