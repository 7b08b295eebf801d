// Dual numbers: numbers with a derivative along one direction. A formula that is written over any
// number type, evaluated with them, gives its derivative too. Applied to the formulas of first
// derivatives, they give the second ones.
#pragma once

#include "simd_math.h"

namespace fastvae {

template <class T>
struct Dual {
  T value, tangent;

  FASTVAE_MEMBER Dual(T value, T tangent = T(0)) : value(value), tangent(tangent) {}
};

template <class T>
FASTVAE_FN Dual<T> operator-(Dual<T> a) {
  return {-a.value, -a.tangent};
}
template <class T>
FASTVAE_FN Dual<T> operator+(Dual<T> a, Dual<T> b) {
  return {a.value + b.value, a.tangent + b.tangent};
}
template <class T>
FASTVAE_FN Dual<T> operator-(Dual<T> a, Dual<T> b) {
  return {a.value - b.value, a.tangent - b.tangent};
}
template <class T>
FASTVAE_FN Dual<T> operator*(Dual<T> a, Dual<T> b) {
  return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
}

// What a select asks is asked of the values.
template <class T>
FASTVAE_FN bool operator<(Dual<T> a, Dual<T> b) {
  return a.value < b.value;
}
template <class T>
FASTVAE_FN bool operator>(Dual<T> a, Dual<T> b) {
  return a.value > b.value;
}

namespace math {

template <class T>
FASTVAE_FN bool is_infinite(Dual<T> x) {
  return is_infinite(x.value);
}

template <class T>
FASTVAE_FN Dual<T> abs(Dual<T> x) {
  return x.value < T(0) ? -x : x;
}

template <class T>
FASTVAE_FN Dual<T> exp(Dual<T> x) {
  const T value = exp(x.value);
  return {value, value * x.tangent};
}

template <class T>
FASTVAE_FN Dual<T> exp_minus(Dual<T> x) {
  const T value = exp_minus(x.value);
  return {value, -value * x.tangent};
}

template <class T>
FASTVAE_FN Dual<T> log1p(Dual<T> x) {
  return {log1p(x.value), divide(x.tangent, T(1) + x.value)};
}

template <class T>
FASTVAE_FN Exponential<Dual<T>> exponential_of(Dual<T> x) {
  const Exponential<T> e = exponential_of(x.value);
  return {{e.value, e.value * x.tangent},
          {e.less_one, e.value * x.tangent},
          {e.less_line, e.less_one * x.tangent}};
}

template <class T>
FASTVAE_FN Dual<T> divide(Dual<T> a, Dual<T> b) {
  const T quotient = divide(a.value, b.value);
  return {quotient, divide(a.tangent - quotient * b.tangent, b.value)};
}

// a * b with 0 * inf = 0, the limit where a is the factor that is exactly zero.
template <class T>
FASTVAE_FN T product_or_zero(T a, T b) {
  return a == T(0) ? T(0) : a * b;
}
template <class T>
FASTVAE_FN Dual<T> product_or_zero(Dual<T> a, Dual<T> b) {
  return {product_or_zero(a.value, b.value),
          product_or_zero(a.tangent, b.value) + product_or_zero(a.value, b.tangent)};
}

}  // namespace math
}  // namespace fastvae
