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

FASTVAE_FN PhiloxBlock philox(Key key, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(key.offset), c3 = static_cast<uint32_t>(key.offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t d0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t d2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = d0;
    c2 = d2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
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
