// Likelihoods whose means are shares of a row's library: mean = library * softmax(logits). The
// kernels take the logarithms of the means and give the derivatives with respect to these. Both are
// computed for a part of the rows at a time, which stays in the cache; neither ever exists as a
// tensor of the logits' size.
#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "likelihood.h"
#include "results.h"

namespace fastvae::ops {
namespace {

// Memory for a part, in the order of `beside`.
Tensor scratch_like(const Tensor& beside, int64_t event, at::ScalarType dtype) {
  const auto options = like(beside, dtype);
  return is_row_major(beside, event) ? empty(beside.sym_sizes(), options)
                                     : at::empty_like(beside, options);
}

class LogShares {
 public:
  explicit LogShares(const Given& given) : given_(given) {
    const Tensor& x = given.first();
    const KernelsFor kernels(x);
    c10::SmallVector<int64_t, 6> event;
    for (int64_t i = 1; i <= given.event(); ++i) event.push_back(-i);
    max_ = event.empty() ? x : x.amax(event);  // of no dimensions torch takes all
    log_sum_ = at::empty(max_.sizes(), like(x, given.dtype()));
    means_ = scratch_like(x, given.event(), given.dtype());
    Rows rows(x, given.event(), RowOrder::any, {x}, {{means_, true}});
    kernels->sum_exp(rows.extent, rows.input(0), rows.upstream(max_), sums_of(log_sum_));
    log_sum_.log_();
    Tensor shift = log_sum_.neg();
    if (given.log_library.has_value()) shift.add_(*given.log_library);
    kernels->log_shares(rows.extent, rows.input(0), rows.upstream(max_), rows.upstream(shift),
                        rows.output(0));
    rows.finish();
  }

  // The same likelihood of log means.
  Given of_means() const {
    Given given = given_;
    given.parameters[0] = means_;
    given.of_shares = false;
    given.log_library.reset();
    return given;
  }

  // From the derivatives by log means to those by the logits, and by log_library, which are those
  // of each row.
  Tensor finish(const Tensor& by_means, const Rows::Result& logits) const {
    const Tensor& x = given_.first();
    const KernelsFor kernels(x);
    const Tensor total = at::empty(max_.sizes(), log_sum_.options());
    Rows rows(x, given_.event(), RowOrder::any, {x, by_means}, {logits});
    kernels->sum_rows(rows.extent, rows.input(1), sums_of(total));
    if (logits.wanted)
      kernels->log_shares_backward(rows.extent, rows.input(1), rows.input(0), rows.upstream(max_),
                                   rows.upstream(log_sum_), rows.upstream(total), rows.output(0));
    rows.finish();
    return total;
  }

 private:
  Given given_;
  Tensor max_, log_sum_, means_;  // of each row; of each element
};

// The gradients of all parts. Of what several of them share, a sum in double.
class PartGrads {
 public:
  PartGrads(const Given& given, at::ArrayRef<Rows::Result> grads, const Rows::Result& target,
            const Rows::Result& library)
      : given_(given), grads_(grads.begin(), grads.end()), target_(target), library_(library) {
    const auto zeros = [](const Tensor& t) { return at::zeros(t.sizes(), like(t, at::kDouble)); };
    if (!grads_.empty() && !given.shared().empty() && grads_.back().wanted &&
        given.last().sizes() != given.first().sizes())
      last_sum_ = zeros(grads_.back().tensor);
    if (target_.wanted) target_sum_ = zeros(target_.tensor);
    if (library_.wanted) library_sum_ = zeros(library_.tensor);
  }

  // f(given, grads, target) fills the gradients by log means of a part.
  template <class F>
  void add(const Part& part, const Given& given, const F& f) {
    const LogShares shares(given);
    const Given of_means = shares.of_means();
    c10::SmallVector<Rows::Result, kMostParameters> grads;
    for (const Rows::Result& r : grads_)
      grads.push_back({r.wanted ? part.of(r.tensor, given.event()) : r.tensor, r.wanted});
    const Rows::Result logits = grads.empty() ? Rows::Result() : grads[0];
    // In place of the means, which nobody reads after them.
    const bool by_means = logits.wanted || library_.wanted;
    if (!grads.empty()) grads[0] = {of_means.first(), by_means};
    if (last_sum_.defined())
      grads.back().tensor = at::empty(given.last().sizes(), last_sum_.options());
    Rows::Result target = target_;
    if (target.wanted) target.tensor = at::empty_like(given.target, last_options(given.target));
    f(of_means, grads, target);
    if (last_sum_.defined()) part.of(last_sum_, given.event()).add_(grads.back().tensor);
    if (target.wanted) part.of(target_sum_, given.event()).add_(target.tensor);
    if (!by_means) return;
    const Tensor by_row = shares.finish(grads[0].tensor, logits);
    if (library_.wanted)
      part.of(library_sum_, 0).add_(fold(by_row, by_row.dim() > given.log_library->dim()));
  }

  void finish() {
    if (last_sum_.defined()) grads_.back().tensor.copy_(last_sum_);
    if (target_.wanted) target_.tensor.copy_(target_sum_);
    if (library_.wanted) library_.tensor.copy_(library_sum_);
  }

 private:
  static at::TensorOptions last_options(const Tensor& t) { return like(t, sum_dtype({t})); }

  const Given& given_;
  c10::SmallVector<Rows::Result, kMostParameters> grads_;
  Rows::Result target_, library_;
  Tensor last_sum_, target_sum_, library_sum_;
};

Parts parts_of(const Given& given) {
  const Tensor& x = given.first();
  const int64_t K = given.has_samples() ? x.size(0) : 1, B = x.size(given.has_samples() ? 1 : 0);
  const int64_t D = x.numel() / (K * B);
  return Parts(K, B, block_elements(x, x.numel(), x.element_size()) / D, 1);
}

}  // namespace

Tensor sums_and_grads(const Given& given, double scale, at::ArrayRef<Rows::Result> grads,
                      const Rows::Result& library) {
  if (!given.of_shares || given.first().is_meta() || given.first().numel() == 0) {
    if (library.wanted && !library.tensor.is_meta()) library.tensor.zero_();
    return sums_and_grads_of_means(given, scale, grads);
  }
  Tensor out = empty(given.rows(), like(given.first(), given.dtype()));
  PartGrads sums(given, grads, {}, library);
  parts_of(given).for_each([&](const Part& part) {
    sums.add(part, given.part(part),
             [&](const Given& some, at::ArrayRef<Rows::Result> some_grads, const Rows::Result&) {
               part.of(out, 0).copy_(sums_and_grads_of_means(some, scale, some_grads));
             });
  });
  sums.finish();
  return out;
}

void gradients(const Given& given, const Tensor& grad, at::ArrayRef<Rows::Result> grads,
               const Rows::Result& target, const Rows::Result& scale, const Rows::Result& library) {
  if (given.first().numel() == 0) {
    zero_wanted(grads);
    return zero_wanted({target, scale, library});
  }
  if (!given.of_shares) return gradients_of_means(given, grad, grads, target, scale);
  PartGrads sums(given, grads, target, library);
  parts_of(given).for_each([&](const Part& part) {
    sums.add(part, given.part(part),
             [&](const Given& some, at::ArrayRef<Rows::Result> some_grads,
                 const Rows::Result& some_target) {
               gradients_of_means(some, part.of(grad, 0), some_grads, some_target, {});
             });
  });
  sums.finish();
}

}  // namespace fastvae::ops
