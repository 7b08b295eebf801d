// The last linear layers of a decoder and its loss, a block of rows at a time: the logits of all
// rows, [K, B, D], are never in memory at once. The matrix products are torch's, and a block stays
// in the cache between them.
#include "linear.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>

#include "layer.h"
#include "results.h"

namespace fastvae::ops {

std::string linear_op(Likelihood likelihood) {
  const std::string name = row_of(likelihood).op;
  const size_t stem = std::string("fastvae.").size();
  return name.substr(0, stem) + "linear_" + name.substr(stem);
}

LinearGiven::LinearGiven(Likelihood likelihood, const Tensor& hidden, const Tensor& weight,
                         const MaybeTensor& bias, const Tensor& target,
                         const MaybeTensor& second_weight, const MaybeTensor& second_bias,
                         const MaybeTensor& last, const MaybeTensor& log_library,
                         const MaybeTensor& crow_indices, const MaybeTensor& col_indices,
                         Activation activation)
    : likelihood(likelihood),
      hidden(hidden),
      heads{{weight, bias}},
      target(target),
      last(last),
      log_library(log_library),
      crow_indices(crow_indices),
      col_indices(col_indices),
      activation(activation) {
  if (second_weight.has_value()) heads.push_back({*second_weight, second_bias});
  TORCH_CHECK_VALUE(heads.size() + last.has_value() == size_t(row_of(likelihood).count),
                    linear_op(likelihood), ": takes ", row_of(likelihood).count,
                    " parameters, got ", heads.size(), " from layers and ",
                    last.has_value() ? "one" : "none", " that all rows share");
}

Given LinearGiven::of(at::ArrayRef<Tensor> results, const Tensor& target_of_them) const {
  const bool two = results.size() > 1;
  return {likelihood,
          results[0],
          two ? results[1] : last,
          two ? last : std::nullopt,
          target_of_them,
          std::nullopt,
          1,
          is_of_shares(likelihood, log_library),
          log_library,
          crow_indices,
          col_indices};
}

void LinearGiven::check(bool check_target) const {
  const std::string name = linear_op(likelihood);
  const char* op = name.c_str();
  const Tensor& weight = heads[0].weight;
  check_floating(op, "hidden", hidden);
  if (!is_sparse()) check_batch(op, "target", target);
  check_same_device(op, "hidden", hidden, "weight", weight);
  check_same_device(op, "hidden", hidden, "target", target);
  TORCH_CHECK_VALUE(weight.dim() == 2, op, ": weight must be [D, H], got ", weight.sym_sizes());
  const c10::SymInt width = weight.sym_size(1);
  const c10::SymInt batch = is_sparse() ? crow_indices->sym_numel() - 1 : target.sym_size(0);
  // [.., B, *E]
  c10::SymDimVector sizes;
  sizes.push_back(batch);
  if (is_sparse())
    sizes.push_back(outputs());
  else
    for (const auto& size : target.sym_sizes().slice(1)) sizes.push_back(size);
  TORCH_CHECK_VALUE((hidden.dim() == 2 || hidden.dim() == 3) && hidden.sym_size(-1) == width &&
                        hidden.sym_size(-2) == batch,
                    op, ": hidden must be [B, H], or [K, B, H] with samples, for weight [D, H] ",
                    "and target [B, *E], got hidden ", hidden.sym_sizes(), ", weight ",
                    weight.sym_sizes(), " and target ", c10::SymIntArrayRef(sizes));
  c10::SymInt event = 1;
  for (size_t i = 1; i < sizes.size(); ++i) event = event * sizes[i];
  TORCH_CHECK_VALUE(event == outputs(), op, ": weight must have a row for each element of a ",
                    "target, got weight ", weight.sym_sizes(), " and target ",
                    c10::SymIntArrayRef(sizes));
  for (size_t i = 0; i < heads.size(); ++i) {
    const std::string which = i == 0 ? "" : "zero_", of_weight = which + "weight";
    const MaybeTensor& bias = heads[i].bias;
    check_same_shape(op, "weight", weight, of_weight.c_str(), heads[i].weight);
    check_same_device(op, "hidden", hidden, of_weight.c_str(), heads[i].weight);
    TORCH_CHECK_VALUE(heads[i].weight.scalar_type() == hidden.scalar_type(), op, ": ", of_weight,
                      " must have the dtype of hidden, ", hidden.scalar_type(), ", got ",
                      heads[i].weight.scalar_type());
    if (!bias.has_value()) continue;
    check_same_device(op, "hidden", hidden, (which + "bias").c_str(), *bias);
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->sym_size(0) == outputs(), op, ": ", which,
                      "bias must be [D], got ", which, "bias ", bias->sym_sizes(), " and weight ",
                      weight.sym_sizes());
    TORCH_CHECK_VALUE(bias->scalar_type() == hidden.scalar_type(), op, ": ", which,
                      "bias must have the dtype of hidden, ", hidden.scalar_type(), ", got ",
                      bias->scalar_type());
  }
  // In the shape of the target, without memory.
  c10::SymDimVector all(sizes);
  if (has_samples()) all.insert(all.begin(), hidden.sym_size(0));
  const Tensor result = hidden.new_empty({1}).expand_symint(all);
  Given given = of(c10::SmallVector<Tensor, 2>(heads.size(), result), target);
  if (last.has_value() && last->dim() > 0 && sizes.size() != 2)
    given.parameters.back() = sizes.size() > 2
                                  ? last->reshape_symint(c10::SymIntArrayRef(sizes).slice(1))
                                  : last->squeeze(-1);
  given.check(op, check_target);
}

namespace {

// Fewer rows make a matrix product slow, however long they are, for it goes over the weights, or
// packs them, each time; and where a batch is cut, products take multiples of them without a rest.
// Of bfloat16, oneDNN was slower with blocks of twice as many elements, which it cuts in another
// way.
constexpr int64_t kRowStep = 256;
// Where as many are more than a block, up to so many rows of so many elements, in parts alike:
// products of 256 rows, 600 -> 20,000, took a sixth longer than those of all rows at once, those of
// 416 a twentieth.
constexpr int64_t kWideRows = 480, kWideElements = int64_t{10} << 20;

bool is_reduced(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

struct Block {
  Part part;
  Tensor hidden;                        // [samples * batch, H], activated
  Given given;                          // its logits [samples, batch, D], and what goes with them
  c10::SmallVector<Tensor, 2> scratch;  // as the logits, the same where those are not kept
  // Of a tensor [K, B, ..], in memory in one piece where that is.
  Tensor flat(const Tensor& t) const { return part.of(t, 1).flatten(0, 1); }
};

class Layer {
 public:
  explicit Layer(const LinearGiven& given)
      : given_(given),
        hidden_(given.has_samples() ? given.hidden : given.hidden.unsqueeze(0)),
        dtype_(product_dtype(given.hidden, given.hidden.scalar_type())),
        parts_(cut()) {
    for (LinearGiven::Head& head : given_.heads) {
      head.weight = head.weight.to(dtype_);
      if (head.bias.has_value()) head.bias = head.bias->to(dtype_);
    }
    if (!given_.is_sparse()) given_.target = given_.target.reshape({B(), D()});
  }

  int64_t K() const { return hidden_.size(0); }
  int64_t B() const { return hidden_.size(1); }
  int64_t D() const { return given_.heads[0].weight.size(0); }
  int64_t blocks() const { return parts_.count(); }
  at::ScalarType dtype() const { return dtype_; }
  const Tensor& weight(size_t head) const { return given_.heads[head].weight; }

  // From d/df(hidden) of a block, where it lies, to d/dhidden.
  void activation_backward(Tensor& grad, const Tensor& activated) const {
    if (given_.activation == Activation::relu)
      at::threshold_backward_out(grad, grad, activated, 0);
    else if (given_.activation == Activation::tanh)
      at::tanh_backward_out(grad, grad, activated);
  }

  // `kept` are the logits [K, B, D] of the first layer, or undefined: then a block has its own.
  // They are computed if `compute`, else read.
  template <class F>
  void for_each_block(const Tensor& kept, bool compute, const F& f) const {
    const auto options = hidden_.options().dtype(dtype_);
    c10::SmallVector<Tensor, 2> buffers;
    for (size_t i = 0; i < given_.heads.size(); ++i)
      buffers.push_back(empty({parts_.rows(), D()}, options));
    Tensor buffer;
    if (given_.activation != Activation::none)
      buffer = empty({parts_.rows(), hidden_.size(-1)}, options);
    // Without the memory of any logits.
    const Tensor whole = hidden_.new_empty({1}).expand({K(), B(), D()});
    const Given all = given_.of(c10::SmallVector<Tensor, 2>(buffers.size(), whole), given_.target);
    parts_.for_each([&](const Part& part) {
      const int64_t rows = part.samples * part.batch;
      Tensor hidden = part.of(hidden_, 1).flatten(0, 1).to(dtype_);
      if (buffer.defined()) {
        Tensor out = buffer.narrow(0, 0, rows);
        hidden = given_.activation == Activation::relu ? at::clamp_min_out(out, hidden, 0)
                                                       : at::tanh_out(out, hidden);
      }
      c10::SmallVector<Tensor, 2> logits, scratch;
      for (size_t i = 0; i < buffers.size(); ++i) {
        scratch.push_back(buffers[i].narrow(0, 0, rows).view({part.samples, part.batch, D()}));
        logits.push_back(kept.defined() ? part.of(kept, 1) : scratch[i]);
        if (!compute) continue;
        Tensor flat = logits[i].flatten(0, 1);
        layer(hidden, given_.heads[i].weight, given_.heads[i].bias, Activation::none, flat);
      }
      Given some = all.part(part);
      for (size_t i = 0; i < logits.size(); ++i) some.parameters[i] = logits[i];
      f(Block{part, hidden, some, scratch});
    });
  }

 private:
  LinearGiven given_;  // in the dtype of the products, the target [B, D]
  Tensor hidden_;      // [K, B, H]
  at::ScalarType dtype_;
  Parts parts_;

  Parts cut() const {
    const int64_t heads = static_cast<int64_t>(given_.heads.size());
    int64_t width = heads * D();
    const int64_t elements = block_elements(hidden_, K() * B() * width, c10::elementSize(dtype_));
    // Beside the logits a block has what is converted: hidden units and their gradient.
    if (dtype_ != hidden_.scalar_type()) width += 2 * hidden_.size(-1);
    const int64_t rows = elements / std::max<int64_t>(1, width);
    if (rows >= kRowStep || hidden_.is_cuda())
      return Parts(K(), B(), std::max(kRowStep, rows), kRowStep);
    const int64_t most = std::clamp(kWideElements / width, kRowStep, kWideRows);
    if (B() <= most) return Parts(K(), B(), most, kRowStep);
    constexpr int64_t step = 16;  // rows that products take at once
    return Parts(K(), B(), ceil_div(ceil_div(B(), ceil_div(B(), most)), step) * step, step);
  }
};

// A sum over the blocks, of which the first one writes. Several of reduced precision are added in
// float32: hundreds of roundings would drown the last ones.
class BlockSum {
 public:
  BlockSum(const Tensor& like, const Layer& layer, bool wanted) : like_(like), wanted_(wanted) {
    const auto dtype = layer.dtype();
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

using Mask = std::array<bool, kLinearOperands>;

// The gradients of all blocks.
class Gradients {
 public:
  Gradients(const Layer& layer, const LinearGiven& given, const Mask& mask)
      : layer_(layer), given_(given), mask_(mask) {
    const Tensor& hidden = given.hidden;
    hidden_ = empty(mask[kHidden] ? hidden.sym_sizes() : c10::SymIntArrayRef{0}, hidden.options());
    by_samples_ = given.has_samples() || !mask[kHidden] ? hidden_ : hidden_.unsqueeze(0);
    for (size_t i = 0; i < given.heads.size(); ++i) {
      const LinearGiven::Head& head = given.heads[i];
      weight_.emplace_back(head.weight, layer, mask[i == 0 ? kWeight : kSecondWeight]);
      bias_.emplace_back(head.bias.value_or(head.weight), layer,
                         mask[i == 0 ? kBias : kSecondBias]);
    }
    const auto zeros = [](const Tensor& t) { return at::zeros(t.sizes(), like(t, at::kDouble)); };
    if (mask[kTarget]) target_ = zeros(given.target).view({layer.B(), layer.D()});
    if (mask[kLast]) last_ = zeros(*given.last);
    if (mask[kLogLibrary]) log_library_ = zeros(*given.log_library);
  }

  // f(results, target, log_library) fills the gradients by the likelihood's parameters and by
  // those.
  template <class F>
  void add(const Block& block, const F& f) {
    c10::SmallVector<Rows::Result, kMostParameters> grads;
    for (size_t i = 0; i < weight_.size(); ++i)
      grads.push_back({block.scratch[i], mask_[kHidden] || is_wanted(i)});
    const auto part_like = [](const Tensor& sum, const Tensor& part) {
      return sum.defined() ? Rows::Result{at::empty(part.sizes(), sum.options()), true}
                           : Rows::Result{part, false};
    };
    const Given& given = block.given;
    if (given_.last.has_value()) grads.push_back(part_like(last_, given.last()));
    const Rows::Result target = part_like(target_, given.target);
    Rows::Result library;
    if (log_library_.defined()) library = part_like(log_library_, *given.log_library);
    f(grads, target, library);
    if (last_.defined()) block.part.of(last_, 1).add_(grads.back().tensor);
    if (target_.defined()) block.part.of(target_, 1).add_(target.tensor);
    if (log_library_.defined()) block.part.of(log_library_, 0).add_(library.tensor);
    add_products(block);
  }

  // In the order of LinearOperand; what was not wanted is empty.
  std::vector<Tensor> result() {
    const Tensor& hidden = given_.hidden;
    const auto none = [&] { return at::empty({0}, hidden.options()); };
    const bool two = weight_.size() > 1;
    const auto as = [&](const Tensor& sum, const MaybeTensor& t) {
      return sum.defined() ? sum.to(t->scalar_type()).view(t->sizes()) : none();
    };
    return {hidden_,
            weight_[0].result(),
            bias_[0].result(),
            as(target_, given_.target),
            two ? weight_[1].result() : none(),
            two ? bias_[1].result() : none(),
            as(last_, given_.last),
            as(log_library_, given_.log_library)};
  }

 private:
  bool is_wanted(size_t head) const {
    return head == 0 ? mask_[kWeight] || mask_[kBias] : mask_[kSecondWeight] || mask_[kSecondBias];
  }

  // From d/dlogits, which stand in the block's scratch memory.
  void add_products(const Block& block) {
    Tensor product;
    for (size_t i = 0; i < weight_.size(); ++i) {
      const Tensor grad_logits = block.scratch[i].flatten(0, 1);
      if (mask_[kHidden]) {
        const Tensor& weight = layer_.weight(i);
        Tensor grad_hidden = block.flat(by_samples_);
        if (i > 0)
          product.addmm_(grad_logits, weight);
        else if (grad_hidden.scalar_type() == grad_logits.scalar_type())
          product = at::mm_out(grad_hidden, grad_logits, weight);
        else
          product = grad_logits.mm(weight);
        if (i + 1 == weight_.size()) {
          layer_.activation_backward(product, block.hidden);
          if (!product.is_alias_of(grad_hidden)) grad_hidden.copy_(product);
        }
      }
      weight_[i].add_product(grad_logits.t(), block.hidden);
      bias_[i].add_rows(grad_logits);
    }
  }

  const Layer& layer_;
  const LinearGiven& given_;
  Mask mask_;
  Tensor hidden_, by_samples_;
  c10::SmallVector<BlockSum, 2> weight_, bias_;
  Tensor target_, last_, log_library_;  // sums over blocks and samples, in double
};

std::vector<Tensor> empty_gradients(const LinearGiven& given, const Mask& mask) {
  const bool two = given.heads.size() > 1;
  const Tensor& none = given.hidden;
  const Tensor all[] = {given.hidden,
                        given.heads[0].weight,
                        given.heads[0].bias.value_or(none),
                        given.target,
                        two ? given.heads[1].weight : none,
                        two ? given.heads[1].bias.value_or(none) : none,
                        given.last.value_or(none),
                        given.log_library.value_or(none)};
  std::vector<Tensor> grads;
  for (size_t i = 0; i < kLinearOperands; ++i)
    grads.push_back(mask[i] ? at::empty_symint(all[i].sym_sizes(), all[i].options())
                            : at::empty({0}, none.options()));
  return grads;
}

// The losses [B] or [K, B], not yet written.
Tensor empty_rows(const LinearGiven& given) {
  const Tensor& hidden = given.hidden;
  const auto dtype = sum_dtype({hidden, given.target, given.last, given.log_library});
  return at::empty_symint(given.rows(), hidden.options().dtype(dtype));
}

LinearGiven given_of(c10::string_view likelihood, const Tensor& hidden, const Tensor& weight,
                     const MaybeTensor& bias, const Tensor& target,
                     const MaybeTensor& second_weight, const MaybeTensor& second_bias,
                     const MaybeTensor& last, const MaybeTensor& log_library,
                     const MaybeTensor& crow_indices, const MaybeTensor& col_indices,
                     int64_t activation) {
  return {likelihood_of(likelihood),
          hidden,
          weight,
          bias,
          target,
          second_weight,
          second_bias,
          last,
          log_library,
          crow_indices,
          col_indices,
          static_cast<Activation>(activation)};
}

}  // namespace

std::tuple<Tensor, Tensor> linear_nll_forward(
    c10::string_view likelihood, const Tensor& hidden, const Tensor& weight,
    const MaybeTensor& bias, const Tensor& target, const MaybeTensor& second_weight,
    const MaybeTensor& second_bias, const MaybeTensor& last, const MaybeTensor& log_library,
    const MaybeTensor& crow_indices, const MaybeTensor& col_indices, int64_t activation, bool keep,
    bool check_target) {
  const LinearGiven given =
      given_of(likelihood, hidden, weight, bias, target, second_weight, second_bias, last,
               log_library, crow_indices, col_indices, activation);
  given.check(check_target);
  Tensor out = empty_rows(given);
  c10::SymDimVector size{0};
  if (keep) {
    size.assign(out.sym_sizes().begin(), out.sym_sizes().end());
    size.push_back(weight.sym_size(0));
  }
  const Tensor logits = at::empty_symint(size, hidden.options());
  if (out.is_meta()) return {out, logits};
  const auto by_samples = [&](const Tensor& t) { return given.has_samples() ? t : t.unsqueeze(0); };
  Layer(given).for_each_block(keep ? by_samples(logits) : Tensor(), true, [&](const Block& block) {
    block.part.of(by_samples(out), 0).copy_(sums_and_grads(block.given, 1, {}));
  });
  return {out, logits};
}

std::tuple<Tensor, std::vector<Tensor>> linear_nll_with_grads(
    c10::string_view likelihood, const Tensor& hidden, const Tensor& weight,
    const MaybeTensor& bias, const Tensor& target, const MaybeTensor& second_weight,
    const MaybeTensor& second_bias, const MaybeTensor& last, const MaybeTensor& log_library,
    const MaybeTensor& crow_indices, const MaybeTensor& col_indices, int64_t activation, bool mean,
    Mask mask, bool check_target) {
  const LinearGiven given =
      given_of(likelihood, hidden, weight, bias, target, second_weight, second_bias, last,
               log_library, crow_indices, col_indices, activation);
  given.check(check_target);
  Tensor out = empty_rows(given);
  if (out.is_meta()) return {out, empty_gradients(given, mask)};
  const Tensor by_samples = given.has_samples() ? out : out.unsqueeze(0);
  const double scale = mean ? 1 / static_cast<double>(out.numel()) : 1;
  const Layer layer(given);
  Gradients grads(layer, given, mask);
  layer.for_each_block({}, true, [&](const Block& block) {
    grads.add(block, [&](at::ArrayRef<Rows::Result> results, const Rows::Result&,
                         const Rows::Result& library) {
      block.part.of(by_samples, 0).copy_(sums_and_grads(block.given, scale, results, library));
    });
  });
  return {out, grads.result()};
}

std::vector<Tensor> linear_nll_backward(
    const Tensor& grad, c10::string_view likelihood, const Tensor& hidden, const Tensor& weight,
    const MaybeTensor& bias, const Tensor& target, const MaybeTensor& second_weight,
    const MaybeTensor& second_bias, const MaybeTensor& last, const MaybeTensor& log_library,
    const MaybeTensor& crow_indices, const MaybeTensor& col_indices, int64_t activation,
    const MaybeTensor& logits, Mask mask) {
  const LinearGiven given =
      given_of(likelihood, hidden, weight, bias, target, second_weight, second_bias, last,
               log_library, crow_indices, col_indices, activation);
  if (hidden.is_meta()) return empty_gradients(given, mask);
  const auto by_samples = [&](const Tensor& t) { return given.has_samples() ? t : t.unsqueeze(0); };
  const Layer layer(given);
  Gradients grads(layer, given, mask);
  const bool kept = logits.has_value();
  layer.for_each_block(kept ? by_samples(*logits) : Tensor(), !kept, [&](const Block& block) {
    grads.add(block, [&](at::ArrayRef<Rows::Result> results, const Rows::Result& target_result,
                         const Rows::Result& library) {
      gradients(block.given, block.part.of(by_samples(grad), 0), results, target_result, {},
                library);
    });
  });
  return grads.result();
}

}  // namespace fastvae::ops
