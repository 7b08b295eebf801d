// From tensors to the arguments of kernels: checks whose errors name what was wrong, and rows of
// elements that are read in place.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/SmallVector.h>

#include <optional>

#include "kernels.h"

namespace fastvae::ops {

using at::Tensor;

inline bool is_supported_floating(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}
inline bool is_supported_floating(const Tensor& t) {
  return is_supported_floating(t.scalar_type());
}

void check_floating(const char* op, const char* name, const Tensor& t);
void check_target(const char* op, const Tensor& target);
void check_counts(const char* op, const char* name, const Tensor& counts);
// That a target has no layout of sparse tensors, which no kernel knows: of one that has, a kernel
// is given its parts.
void check_dense(const char* op, const Tensor& target);
void check_batch(const char* op, const char* name, const Tensor& t);
void check_same_shape(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                      const Tensor& b);
void check_same_device(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                       const Tensor& b);

void check_generator(const char* op, const Tensor& input,
                     const std::optional<at::Generator>& generator);
void check_moments(const char* op, const Tensor& mu, const Tensor& logvar);
// logits (or mean) [B, *E] or [K, B, *E] against target [B, *E], whose dtype is not looked at; true
// if there is a K.
bool check_samples(const char* op, const char* name, const Tensor& logits, const Tensor& target);
// Rows [B, D] of which most elements are 0: crow_indices [B + 1], and col_indices and values of one
// size, against logits (or such) [B, D] or [K, B, D]. On a CPU that the columns of each row are
// sorted, and that each is there once.
void check_sparse(const char* op, const char* name, const Tensor& logits,
                  const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values);
// That a value which many elements may share has the shape of all of them, or is broadcast to it.
void check_shared(const char* op, const char* name_all, const Tensor& all, const char* name,
                  const Tensor& shared);
// That a target of probabilities lies in [0, 1], or an error that says which value does not. On a
// GPU the kernel stops, and nothing waits for it here.
void check_probabilities(const char* op, const Tensor& target);
// Likewise, that counts are not negative.
void check_not_negative(const char* op, const char* name, const Tensor& counts);
// Likewise, that they are not above a total, called `name`.
void check_not_above(const char* op, const Tensor& counts, const Tensor& total, const char* name);

// The kernels for a tensor's device, which is the current one as long as this lives; an error if
// this build has none.
class KernelsFor {
 public:
  explicit KernelsFor(const Tensor& t);
  const Kernels* operator->() const { return kernels_; }

 private:
  c10::OptionalDeviceGuard guard_;
  const Kernels* kernels_;
};

// A new stream of noise: what the kernel that draws it reads, and the key, int64 [2], by which it
// is drawn again. On a GPU that kernel writes the key.
template <class Numbers>
struct Noise {
  Numbers numbers;
  Tensor key;
};
Noise<Normal> draw_normal(const Tensor& beside, const std::optional<at::Generator>& generator);
Noise<Uniform> draw_uniform(const Tensor& beside, const std::optional<at::Generator>& generator);
Normal normal_input(const Tensor& key);

Input scalar_input(const Tensor& scalar);  // 0-d
// Of a target by compressed rows; the indices int64, and owned by who calls.
Input sparse_input(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values);
Input as_count(Input input);  // of uint8 the number itself, not an image's
Sums sums_of(const Tensor& sums);

// Whether the last dimensions are one run of elements, in the order of their indices.
bool is_row_major(const Tensor& t, int64_t event_dims);

enum class RowOrder {
  row_major,  // the order of the event's indices matters: the noise is numbered along it
  any,        // it does not, as long as all tensors have the same one
};

// The rows of some tensors [B, *E] or [K, B, *E] with the same event. Tensors whose rows are runs
// of elements in the wanted order are used where they lie, with any batch stride; others are
// copied. What is broadcast to them (`shared`) is never expanded: values that follow one another
// along one dimension, or some that lie side by side, are read in place; of others, and of several
// in an order that is not that of the indices, no more than one row is made.
class Rows {
 public:
  struct Result {
    Tensor tensor;
    bool wanted = false;
  };

  // The extent is that of `shaped`, whose last `event_dims` dimensions are the event.
  Rows(const Tensor& shaped, int64_t event_dims, RowOrder order, at::ArrayRef<Tensor> inputs,
       at::ArrayRef<Result> outputs = {}, at::ArrayRef<Tensor> shared = {});

  Extent extent;
  Input input(size_t i) const;
  Target target(size_t i) const { return {input(i)}; }
  Shared shared(size_t i) const { return {shared_[i]}; }
  // A gradient of the row sums, [B] or [K, B], any strides, or one for all of them; times `weight`.
  PerRow upstream(const Tensor& grad, double weight = 1) const;
  Output output(size_t i) const;
  Output output(const Tensor& row_major, bool wanted = true) const;
  // Sums over all rows, [D] in the order in which elements are visited, as [*E].
  Tensor by_event(const Tensor& columns) const;
  // Copies back the outputs that could not be written in place.
  void finish();

 private:
  int64_t event_dims_;
  bool has_samples_;
  Input elements_of(const Tensor& t) const;
  Input input_of_shared(const Tensor& shaped, Tensor t, bool in_memory);

  c10::SmallVector<Tensor, 4> inputs_, shared_tensors_;  // the latter own what is pointed to
  c10::SmallVector<Input, 2> shared_;
  // The event's sizes, and its dimensions from the outermost to the innermost as they are visited.
  c10::SmallVector<int64_t, 6> event_, order_;
  c10::SmallVector<Result, 4> outputs_, given_;
};

}  // namespace fastvae::ops
