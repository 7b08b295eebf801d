// A step of Adam.
#include <cmath>

#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {
namespace {

struct Moment {
  float beta, rate, log_beta;

  explicit Moment(double beta)
      : beta(static_cast<float>(beta)),
        rate(static_cast<float>(1 - beta)),
        log_beta(static_cast<float>(std::log(beta))) {}
};

// For the elements of one tensor.
struct AdamElement {
  Moment mean, square;
  float size, scale, eps, sign, decay;

  template <class T>
  FASTVAE_LAMBDA auto operator()(T value, T grad, T exp_avg, T exp_avg_sq) const {
    const T g = sign * grad + formulas::product_or_zero(T(decay), value);
    const T m = formulas::moving_average(exp_avg, g, T(mean.beta), T(mean.rate));
    const T v = formulas::moving_average(exp_avg_sq, g * g, T(square.beta), T(square.rate));
    return values(formulas::adam(value, m, v, T(size), T(scale), T(eps)), m, v);
  }
};

struct Adam {
  decltype(scalar(Input())) lr;
  Moment mean, square;
  float eps, sign, decay;

  FASTVAE_LAMBDA AdamElement operator()(float step) const {
    const float mean_correction = formulas::bias_correction(mean.log_beta, step);
    const float square_correction = formulas::bias_correction(square.log_beta, step);
    return {mean,
            square,
            static_cast<float>(lr) / mean_correction,
            1.0f / math::sqrt(square_correction),
            eps,
            sign,
            decay};
  }
};

}  // namespace

void adam(const Parameter* parameters, int64_t count, Input lr, AdamOptions options) {
  map_each(parameters, count,
           Adam{scalar(lr), Moment(options.beta1), Moment(options.beta2),
                static_cast<float>(options.eps), options.maximize ? -1.0f : 1.0f,
                static_cast<float>(options.weight_decay)});
}

}  // namespace fastvae::FASTVAE_DEVICE
