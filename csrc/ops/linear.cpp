// The last linear layer of a decoder and its loss, a block of rows at a time: the logits of all
// rows, [K, B, D], are never in memory. The products are torch's, between them a block stays in the
// cache.
#include <ATen/ops/addmm.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../rows.h"
#include "layer.h"
#include "likelihood.h"
#include "results.h"

namespace fastvae::ops {
namespace {

// A block's logits. On a CPU they fit the last cache that a core has to itself, as float32; of
// bfloat16, oneDNN was slower with twice as many, which it cuts in another way.
constexpr int64_t kBlockElements = int64_t{1} << 19;
// On a GPU the longer a product is the faster, and no block stays in a cache: a quarter of all
// logits, between these.
constexpr int64_t kCudaLeastBytes = int64_t{64} << 20, kCudaMostBytes = int64_t{256} << 20;
// Fewer make a matrix product slow, however long they are, for it goes over the weights, or packs
// them, each time; and where a batch is cut, products take multiples of them without a rest.
constexpr int64_t kRowStep = 256;

bool is_reduced(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

// True if there is a K.
bool check_linear(const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias,
                  const Tensor& target, bool check_target_values) {
  const char* op = "fastvae.linear_sigmoid_cross_entropy";
  check_floating(op, "hidden", hidden);
  check_target(op, target);
  check_batch(op, "target", target);
  check_same_device(op, "hidden", hidden, "weight", weight);
  check_same_device(op, "hidden", hidden, "target", target);
  TORCH_CHECK_VALUE(weight.dim() == 2, op, ": weight must be [D, H], got ", weight.sym_sizes());
  const c10::SymInt outputs = weight.sym_size(0), width = weight.sym_size(1);
  TORCH_CHECK_VALUE((hidden.dim() == 2 || hidden.dim() == 3) && hidden.sym_size(-1) == width &&
                        hidden.sym_size(-2) == target.sym_size(0),
                    op, ": hidden must be [B, H], or [K, B, H] with samples, beside weight [D, H] ",
                    "and target [B, *E], got hidden ", hidden.sym_sizes(), ", weight ",
                    weight.sym_sizes(), " and target ", target.sym_sizes());
  c10::SymInt event = 1;
  for (const auto& size : target.sym_sizes().slice(1)) event = event * size;
  TORCH_CHECK_VALUE(event == outputs, op, ": weight must have a row for each element of a target, ",
                    "got weight ", weight.sym_sizes(), " and target ", target.sym_sizes());
  TORCH_CHECK_VALUE(weight.scalar_type() == hidden.scalar_type(), op,
                    ": weight must have the dtype of hidden, ", hidden.scalar_type(), ", got ",
                    weight.scalar_type());
  if (bias.has_value()) {
    check_same_device(op, "hidden", hidden, "bias", *bias);
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->sym_size(0) == outputs, op,
                      ": bias must be [D], got bias ", bias->sym_sizes(), " and weight ",
                      weight.sym_sizes());
    TORCH_CHECK_VALUE(bias->scalar_type() == hidden.scalar_type(), op,
                      ": bias must have the dtype of hidden, ", hidden.scalar_type(), ", got ",
                      bias->scalar_type());
  }
  if (check_target_values) check_probabilities(op, target);
  return hidden.dim() == 3;
}

// Rows k .. k + samples of the samples and b .. b + batch of the batch.
struct Block {
  int64_t k, samples, b, batch;
  Tensor hidden;   // [samples * batch, H], activated
  Tensor logits;   // [samples, batch, D]
  Tensor scratch;  // likewise, the same where the logits are not kept
  Tensor target;   // [batch, D]

  // The same of a tensor [K, B, ...], in memory in one piece where that is.
  Tensor of(const Tensor& t) const { return t.narrow(0, k, samples).narrow(1, b, batch); }
  Tensor flat(const Tensor& t) const { return of(t).flatten(0, 1); }
};

class Layer {
 public:
  Layer(const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias, const Tensor& target,
        int64_t activation)
      : hidden_(hidden.dim() == 3 ? hidden : hidden.unsqueeze(0)),
        weight_(weight.to(product_dtype(weight, weight.scalar_type()))),
        bias_(bias),
        target_(target.reshape({target.size(0), weight.size(0)})),
        activation_(static_cast<Activation>(activation)) {
    if (bias_.has_value()) bias_ = bias_->to(weight_.scalar_type());
    int64_t width = weight_.size(0);
    // Beside the logits a block has what is converted: hidden units and their gradient.
    if (weight_.scalar_type() != hidden.scalar_type()) width += 2 * weight_.size(1);
    int64_t elements = kBlockElements;
    if (hidden.is_cuda()) {
      const int64_t size = weight_.element_size();
      elements = std::clamp(K() * B() * weight_.size(0) / 4, kCudaLeastBytes / size,
                            kCudaMostBytes / size);
    }
    const int64_t most = std::max(kRowStep, elements / std::max<int64_t>(1, width));
    batch_ = std::max<int64_t>(1, B() <= most ? B() : most / kRowStep * kRowStep);
    samples_ = std::max<int64_t>(1, std::min(K(), most / batch_));
  }

  int64_t K() const { return hidden_.size(0); }
  int64_t B() const { return hidden_.size(1); }
  int64_t blocks() const {
    return ((K() + samples_ - 1) / samples_) * ((B() + batch_ - 1) / batch_);
  }
  const Tensor& weight() const { return weight_; }

  // From d/df(hidden) of a block, where it lies, to d/dhidden.
  void activation_backward(Tensor& grad, const Tensor& activated) const {
    if (activation_ == Activation::relu)
      at::threshold_backward_out(grad, grad, activated, 0);
    else if (activation_ == Activation::tanh)
      at::tanh_backward_out(grad, grad, activated);
  }

  // `kept` are the logits [K, B, D], or undefined: then a block has its own. They are computed if
  // `compute`, else read.
  template <class F>
  void for_each_block(const Tensor& kept, bool compute, const F& f) const {
    const Tensor buffer = empty({samples_ * batch_, weight_.size(0)}, weight_.options());
    Tensor activated;
    if (activation_ != Activation::none)
      activated = empty({samples_ * batch_, weight_.size(1)}, weight_.options());
    for (int64_t k = 0; k < K(); k += samples_) {
      for (int64_t b = 0; b < B(); b += batch_) {
        Block block{k, std::min(samples_, K() - k), b, std::min(batch_, B() - b), {}, {}, {}, {}};
        block.hidden = block.flat(hidden_).to(weight_.scalar_type());
        if (activated.defined()) {
          Tensor out = activated.narrow(0, 0, block.samples * block.batch);
          block.hidden = activation_ == Activation::relu ? at::clamp_min_out(out, block.hidden, 0)
                                                         : at::tanh_out(out, block.hidden);
        }
        block.scratch = buffer.narrow(0, 0, block.samples * block.batch)
                            .view({block.samples, block.batch, weight_.size(0)});
        block.logits = kept.defined() ? block.of(kept) : block.scratch;
        block.target = target_.narrow(0, b, block.batch);
        if (compute) {
          Tensor logits = block.logits.flatten(0, 1);
          layer(block.hidden, weight_, bias_, Activation::none, logits);
        }
        f(block);
      }
    }
  }

 private:
  Tensor hidden_;  // [K, B, H]
  Tensor weight_;
  MaybeTensor bias_;
  Tensor target_;  // [B, D]
  Activation activation_;
  int64_t batch_, samples_;
};

// A sum over the blocks, of which the first one writes. Several of reduced precision are added in
// float32: hundreds of roundings would drown the last ones.
class BlockSum {
 public:
  BlockSum(const Tensor& like, const Layer& layer, bool wanted) : like_(like), wanted_(wanted) {
    const auto dtype = layer.weight().scalar_type();
    if (wanted)
      sum_ =
          empty(like.sym_sizes(),
                like.options().dtype(layer.blocks() > 1 && is_reduced(dtype) ? at::kFloat : dtype));
  }

  void add_product(const Tensor& a, const Tensor& b) {
    if (!wanted_) return;
    if (sum_.scalar_type() == a.scalar_type())
      at::addmm_out(sum_, sum_, a, b, /*beta=*/is_first_ ? 0 : 1);
    else
      add(a.mm(b));
    is_first_ = false;
  }

  void add_rows(const Tensor& a) {
    if (!wanted_) return;
    add(a.sum(0, /*keepdim=*/false, sum_.scalar_type()));
    is_first_ = false;
  }

  // Of no blocks, 0; of nothing that was wanted, an empty tensor.
  Tensor result() {
    if (!wanted_) return at::empty({0}, like_.options());
    if (is_first_) sum_.zero_();
    return sum_.to(like_.scalar_type());
  }

 private:
  void add(const Tensor& term) {
    if (is_first_)
      sum_.copy_(term);
    else
      sum_.add_(term);
  }

  Tensor like_, sum_;
  bool wanted_, is_first_ = true;
};

// The gradients of all blocks.
class Gradients {
 public:
  Gradients(const Layer& layer, const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias,
            std::array<bool, 3> mask)
      : layer_(layer),
        hidden_(empty(mask[0] ? hidden.sym_sizes() : c10::SymIntArrayRef{0}, hidden.options())),
        by_samples_(hidden.dim() == 3 || !mask[0] ? hidden_ : hidden_.unsqueeze(0)),
        weight_(weight, layer, mask[1]),
        bias_(bias.value_or(weight), layer, mask[2]),
        mask_(mask) {}

  bool any() const { return mask_[0] || mask_[1] || mask_[2]; }

  // From d/dlogits, which stands in the block's scratch memory.
  void add(const Block& block) {
    const Tensor grad_logits = block.scratch.flatten(0, 1);
    if (mask_[0]) {
      Tensor grad_hidden = block.flat(by_samples_);
      const bool in_place = grad_hidden.scalar_type() == grad_logits.scalar_type();
      Tensor product = in_place ? at::mm_out(grad_hidden, grad_logits, layer_.weight())
                                : grad_logits.mm(layer_.weight());
      layer_.activation_backward(product, block.hidden);
      if (!in_place) grad_hidden.copy_(product);
    }
    weight_.add_product(grad_logits.t(), block.hidden);
    bias_.add_rows(grad_logits);
  }

  std::tuple<Tensor, Tensor, Tensor> result() {
    return {hidden_, weight_.result(), bias_.result()};
  }

 private:
  const Layer& layer_;
  Tensor hidden_, by_samples_;
  BlockSum weight_, bias_;
  std::array<bool, 3> mask_;
};

Tensor empty_like_if(const Tensor& t, bool wanted) {
  return at::empty_symint(wanted ? t.sym_sizes() : c10::SymIntArrayRef{0}, t.options());
}

// The losses [B] or [K, B], not yet written.
Tensor empty_rows(const Tensor& hidden, const Tensor& target) {
  return at::empty_symint(hidden.sym_sizes().slice(0, hidden.dim() - 1),
                          hidden.options().dtype(sum_dtype({hidden, target})));
}

}  // namespace

std::tuple<Tensor, Tensor> linear_sigmoid_cross_entropy_forward(
    const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias, const Tensor& target,
    bool keep, bool check_target, int64_t activation) {
  const bool has_samples = check_linear(hidden, weight, bias, target, check_target);
  Tensor out = empty_rows(hidden, target);
  c10::SymDimVector size{0};
  if (keep) {
    size.assign(out.sym_sizes().begin(), out.sym_sizes().end());
    size.push_back(weight.sym_size(0));
  }
  const Tensor logits = at::empty_symint(size, hidden.options());
  if (out.is_meta()) return {out, logits};
  const auto by_samples = [&](const Tensor& t) { return has_samples ? t : t.unsqueeze(0); };
  const KernelsFor device(hidden);
  const LikelihoodKernels& kernels = kernels_of(device, Likelihood::sigmoid_cross_entropy);
  Layer(hidden, weight, bias, target, activation)
      .for_each_block(keep ? by_samples(logits) : Tensor(), true, [&](const Block& block) {
        const Rows rows(block.logits, 1, RowOrder::any, {block.logits, block.target});
        kernels.sum(rows.extent, inputs_of(rows, Likelihood::sigmoid_cross_entropy),
                    sums_of(block.of(by_samples(out))));
      });
  return {out, logits};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_sigmoid_cross_entropy_with_grad(
    const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias, const Tensor& target,
    bool mean, std::array<bool, 3> mask, bool check_target, int64_t activation) {
  const bool has_samples = check_linear(hidden, weight, bias, target, check_target);
  Tensor out = empty_rows(hidden, target);
  if (out.is_meta())
    return {out, empty_like_if(hidden, mask[0]), empty_like_if(weight, mask[1]),
            empty_like_if(bias.value_or(weight), mask[2])};
  const Tensor by_samples = has_samples ? out : out.unsqueeze(0);
  const double scale = mean ? 1 / static_cast<double>(out.numel()) : 1;
  const KernelsFor device(hidden);
  const LikelihoodKernels& kernels = kernels_of(device, Likelihood::sigmoid_cross_entropy);
  const Layer layer(hidden, weight, bias, target, activation);
  Gradients grads(layer, hidden, weight, bias, mask);
  layer.for_each_block({}, true, [&](const Block& block) {
    Rows rows(block.logits, 1, RowOrder::any, {block.logits, block.target},
              {{block.scratch, true}});
    const Output grad_logits = rows.output(0);
    kernels.sum_with_grads(rows.extent, inputs_of(rows, Likelihood::sigmoid_cross_entropy), scale,
                           sums_of(block.of(by_samples)), &grad_logits);
    rows.finish();
    grads.add(block);
  });
  return std::tuple_cat(std::make_tuple(out), grads.result());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_sigmoid_cross_entropy_backward(
    const Tensor& grad, const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias,
    const Tensor& target, const MaybeTensor& logits, std::array<bool, 4> mask, int64_t activation) {
  Tensor grad_target = empty_like_if(target, mask[3]);
  if (hidden.is_meta())
    return {empty_like_if(hidden, mask[0]), empty_like_if(weight, mask[1]),
            empty_like_if(bias.value_or(weight), mask[2]), grad_target};
  const bool has_samples = hidden.dim() == 3;
  const auto by_samples = [&](const Tensor& t) { return has_samples ? t : t.unsqueeze(0); };
  const KernelsFor device(hidden);
  const LikelihoodKernels& kernels = kernels_of(device, Likelihood::sigmoid_cross_entropy);
  const Layer layer(hidden, weight, bias, target, activation);
  Gradients grads(layer, hidden, weight, bias, {mask[0], mask[1], mask[2]});
  Tensor target_sum;  // [B, D], over the samples
  if (mask[3])
    target_sum =
        at::zeros({layer.B(), weight.size(0)}, target.options().dtype(sum_dtype({hidden, target})));
  const bool kept = logits.has_value();
  layer.for_each_block(kept ? by_samples(*logits) : Tensor(), !kept, [&](const Block& block) {
    const Tensor upstream = block.of(by_samples(grad));
    if (mask[3]) {
      const Tensor term = at::empty(block.target.sizes(), target_sum.options());
      Rows rows(block.logits, 1, RowOrder::any, {block.logits, block.target}, {{term, true}});
      kernels.backward_target(rows.extent, rows.upstream(upstream),
                              inputs_of(rows, Likelihood::sigmoid_cross_entropy), rows.output(0));
      rows.finish();
      target_sum.narrow(0, block.b, block.batch).add_(term);
    }
    if (!grads.any()) return;
    Rows rows(block.logits, 1, RowOrder::any, {block.logits, block.target},
              {{block.scratch, true}});
    const Output grad_logits = rows.output(0);
    kernels.backward(rows.extent, rows.upstream(upstream),
                     inputs_of(rows, Likelihood::sigmoid_cross_entropy), &grad_logits);
    rows.finish();
    grads.add(block);
  });
  if (mask[3]) grad_target.copy_(target_sum.view(target.sizes()));
  return std::tuple_cat(grads.result(), std::make_tuple(grad_target));
}

}  // namespace fastvae::ops
