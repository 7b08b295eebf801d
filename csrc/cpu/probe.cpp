#include "probe.h"

#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {
namespace {

template <class F>
bool over(const float* in, float* out, int64_t n, F f) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = f(in[i]);
  return true;
}

// The noise functions take words: they come as the float's bits.
uint32_t word_of(float x) { return math::bit_cast<uint32_t>(x); }

bool equal(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) ++a, ++b;
  return *a == *b;
}

}  // namespace

bool evaluate(const char* function, const float* in, float* out, int64_t n) {
  if (equal(function, "exp")) return over(in, out, n, [](float x) { return math::exp(x); });
  if (equal(function, "exp_minus"))
    return over(in, out, n, [](float x) { return math::exp_minus(x); });
  if (equal(function, "log1p")) return over(in, out, n, [](float x) { return math::log1p(x); });
  if (equal(function, "sigmoid"))
    return over(in, out, n, [](float x) { return formulas::sigmoid(x, formulas::odds(x)); });
  if (equal(function, "exponential_of"))
    return over(in, out, n, [](float x) { return math::exponential_of(x).value; });
  if (equal(function, "exp_less_one"))
    return over(in, out, n, [](float x) { return math::exponential_of(x).less_one; });
  if (equal(function, "exp_less_line"))
    return over(in, out, n, [](float x) { return math::exponential_of(x).less_line; });
  if (equal(function, "exponential"))
    return over(in, out, n, [](float x) { return math::exponential(word_of(x), 0.0f); });
  if (equal(function, "sin_turn"))
    return over(in, out, n, [](float x) { return math::sincos_turn(word_of(x), 0.0f).sin; });
  if (equal(function, "cos_turn"))
    return over(in, out, n, [](float x) { return math::sincos_turn(word_of(x), 0.0f).cos; });
  return false;
}

void words(Key key, uint64_t first_block, uint32_t* out, int64_t blocks) {
  for (int64_t j = 0; j < blocks; j += kStride) {
    uint32_t word[4][kStride];
    fill_words(key, first_block + static_cast<uint64_t>(j), kStride,
               {word[0], word[1], word[2], word[3]});
    for (int64_t i = 0; i < kStride && j + i < blocks; ++i)
      for (int w = 0; w < 4; ++w) out[4 * (j + i) + w] = word[w][i];
  }
}

}  // namespace fastvae::FASTVAE_DEVICE
