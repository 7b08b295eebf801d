// What a network computes between its matrix products: biases, activations, their derivatives.
#include "declarations.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {

void convert(Extent extent, Target x, Output out) {
  map(extent, {out}, [] FASTVAE_LAMBDA(auto x) { return values(x); }, x);
}

namespace {

struct Identity {
  template <class T>
  FASTVAE_LAMBDA T operator()(T x) const {
    return x;
  }
};

struct ReLU {
  template <class T>
  FASTVAE_LAMBDA T operator()(T x) const {
    return formulas::relu(x);
  }
  template <class T>
  FASTVAE_LAMBDA T backward(T g, T y) const {
    return formulas::relu_backward(g, y);
  }
};

struct Tanh {
  template <class T>
  FASTVAE_LAMBDA T operator()(T x) const {
    return formulas::tanh(x);
  }
  template <class T>
  FASTVAE_LAMBDA T backward(T g, T y) const {
    return formulas::tanh_backward(g, y);
  }
};

template <class Call>
void with_function(Activation f, const Call& call) {
  if (f == Activation::relu)
    call(ReLU());
  else
    call(Tanh());
}

// Named, because a lambda for a GPU may not be made within a generic one.
template <class F>
struct AfterBias {
  F f;
  template <class T>
  FASTVAE_LAMBDA auto operator()(T x, T bias) const {
    return values(f(x + bias));
  }
  template <class T>
  FASTVAE_LAMBDA auto operator()(T x) const {
    return values(f(x));
  }
};

template <class F>
struct Before {
  F f;
  template <class T>
  FASTVAE_LAMBDA auto operator()(T g, T y) const {
    const T grad = f.backward(g, y);
    return values(grad, grad);
  }
};

}  // namespace

void activate(Extent extent, Input x, const Shared* bias, Activation f, Output out) {
  const auto after_bias = [&]<class F>(F f) {
    if (bias)
      map(extent, {out}, AfterBias<F>{f}, x, *bias);
    else
      map(extent, {out}, AfterBias<F>{f}, x);
  };
  if (f == Activation::none)
    after_bias(Identity());
  else
    with_function(f, after_bias);
}

void activate_backward(Extent extent, Input grad, Input activated, Activation f, Output grad_x,
                       Sums grad_bias) {
  with_function(f, [&]<class F>(F f) {
    map_and_column_sum(extent, {grad_x}, {grad_bias}, Before<F>{f}, grad, activated);
  });
}

}  // namespace fastvae::FASTVAE_DEVICE
