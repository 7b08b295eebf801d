// Runs of a noise stream. The words of as many blocks as fill a vector register are computed at
// once, and a loop over the blocks then turns them into numbers.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../philox.h"

namespace fastvae::cpu {
namespace {

// A register of 64-bit lanes. A lane holds one 32-bit word of one block: the multiplication of the
// low halves, which every instruction set of x86 has, then needs no shuffle.
#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif
using Lanes = uint64_t __attribute__((vector_size(8 * kLanes)));

FASTVAE_FN Lanes multiply_low_halves(Lanes a, uint32_t b) {
#if defined(__AVX512F__)
  // Zeroing where the mask, all ones, has zeros: the form without a mask warns in gcc (bug 105593).
  return (Lanes)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (Lanes)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (a & 0xffffffffu) * uint64_t{b};
#endif
}

constexpr int64_t kStride = 2 * kLanes;  // blocks at a time

// The four words of `blocks` blocks, each kind by itself; whole strides are written.
inline void fill_words(Key key, uint64_t first_block, int64_t blocks, uint32_t* const (&out)[4]) {
  Lanes even;  // of the blocks in a stride, the even ones in one register, the odd in another
  for (int lane = 0; lane < kLanes; ++lane) even[lane] = first_block + 2 * lane;
  for (int64_t j = 0; j < blocks; j += kStride) {
    Lanes c[2][4];
    for (int odd = 0; odd < 2; ++odd) {
      const Lanes block = even + static_cast<uint64_t>(j + odd);
      c[odd][0] = block;
      c[odd][1] = block >> 32;
      c[odd][2] = Lanes{} + key.offset;
      c[odd][3] = Lanes{} + (key.offset >> 32);
      philox_rounds(c[odd], key, [](Lanes a, uint32_t b) { return multiply_low_halves(a, b); });
    }
    for (int w = 0; w < 4; ++w) {
      const Lanes both = (c[0][w] & 0xffffffffu) | (c[1][w] << 32);
      memcpy(out[w] + j, &both, sizeof(both));
    }
  }
}

// Numbers [first, first + n) of the stream, standard normal or uniform on [0, 1), n <= kMax;
// returns where in `buffer` (kMax + 8 long) they begin.
template <class T, bool Normal, int64_t kMax>
const T* noise(Key key, int64_t first, int64_t n, T* buffer) {
  const uint64_t first_block = static_cast<uint64_t>(first) / 4;
  const int64_t skip = first % 4;
  const int64_t blocks = (skip + n + 3) / 4;
  alignas(64) uint32_t a[kMax / 4 + 2 + kStride], b[kMax / 4 + 2 + kStride];
  alignas(64) uint32_t c[kMax / 4 + 2 + kStride], d[kMax / 4 + 2 + kStride];
  fill_words(key, first_block, blocks, {a, b, c, d});
#pragma omp simd
  for (int64_t j = 0; j < blocks; ++j) {
    T* out = buffer + 4 * j;
    if constexpr (Normal) {
      const NormalPair<T> x = box_muller<T>(a[j], b[j]);
      const NormalPair<T> y = box_muller<T>(c[j], d[j]);
      out[0] = x.first;
      out[1] = x.second;
      out[2] = y.first;
      out[3] = y.second;
    } else {
      out[0] = uniform<T>(a[j]);
      out[1] = uniform<T>(b[j]);
      out[2] = uniform<T>(c[j]);
      out[3] = uniform<T>(d[j]);
    }
  }
  return buffer + skip;
}

}  // namespace
}  // namespace fastvae::cpu
