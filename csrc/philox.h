// Counter-based noise: element i of a stream is a pure function of (key, i).
//
// Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
// (SC 2011); normals by Box and Muller (1958). Elements 4j .. 4j+3 come from the four words of the
// block whose counter is j, so a vector of blocks gives a contiguous run of elements.
#pragma once

#include "simd_math.h"

namespace fastvae {

// `seed` keys the generator; `offset` fills the counter's upper half, so that one seed has 2^64
// streams of 2^64 blocks each.
struct Key {
  uint64_t seed = 0;
  uint64_t offset = 0;
};

struct PhiloxBlock {
  uint32_t word[4];
};

// The ten rounds over a counter of four words. Each lies in the low half of a 64-bit number, or of
// the lanes of a vector of them; what the upper halves hold is ignored and left undefined.
// multiply(a, b) is the 64-bit product of a's low half and b.
template <class Word, class F>
FASTVAE_FN void philox_rounds(Word (&c)[4], Key key, F multiply) {
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Word p0 = multiply(c[0], 0xD2511F53u);
    const Word p1 = multiply(c[2], 0xCD9E8D57u);
    c[0] = (p1 >> 32) ^ c[1] ^ uint64_t { k0 };
    c[1] = p1;
    c[2] = (p0 >> 32) ^ c[3] ^ uint64_t { k1 };
    c[3] = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

FASTVAE_FN PhiloxBlock philox(Key key, uint64_t block) {
  uint64_t c[4] = {block, block >> 32, key.offset, key.offset >> 32};
  philox_rounds(c, key, [](uint64_t a, uint32_t b) { return (a & 0xffffffffu) * b; });
  return {{static_cast<uint32_t>(c[0]), static_cast<uint32_t>(c[1]), static_cast<uint32_t>(c[2]),
           static_cast<uint32_t>(c[3])}};
}

// Two standard normals from two words: sqrt(-2 log u) (cos 2 pi v, sin 2 pi v). |value| <= 6.77.
template <class T>
struct NormalPair {
  T first, second;
};

template <class T>
FASTVAE_FN NormalPair<T> box_muller(uint32_t radius_word, uint32_t angle_word) {
  const T radius = math::sqrt(T(2) * math::exponential(radius_word, T()));
  const math::SinCos<T> angle = math::sincos_turn(angle_word, T());
  return {radius * angle.cos, radius * angle.sin};
}

// Uniform on {0, 1, ..., 2^24 - 1} / 2^24: exact in float, never 1.
template <class T>
FASTVAE_FN T uniform(uint32_t word) {
  return static_cast<T>(static_cast<int32_t>(word >> 8)) * T(0x1p-24);
}

}  // namespace fastvae
