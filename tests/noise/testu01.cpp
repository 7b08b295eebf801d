// TestU01 (L'Ecuyer and Simard, "TestU01: A C library for empirical testing of random number
// generators", ACM TOMS 33(4), 2007) over the words of csrc/philox.h. testu01.sh compiles and runs.
//
//   testu01 smallcrush|crush STREAM [SEED]
//
// prints TestU01's summary and fails if a p-value is outside [1e-10, 1 - 1e-10], which the authors
// call a clear failure. The summary names those outside [0.001, 0.999], of which a sound generator
// has one in 500 too.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "philox.h"

extern "C" {
#include <testu01/bbattery.h>
#include <testu01/swrite.h>
#include <testu01/unif01.h>
}

namespace {

// TestU01 takes a function without arguments, hence the state out here.
uint64_t seed = 0;
uint64_t position = 0;
fastvae::PhiloxBlock block;

// One draw of an operator: the words of one key in order.
unsigned words() {
  const uint64_t i = position++;
  if (i % 4 == 0) block = fastvae::philox({seed, 0}, i / 4);
  return block.word[i % 4];
}

// Many small draws: the first word of each of consecutive keys.
unsigned keys() { return fastvae::philox({seed + position++, 0}, 0).word[0]; }

// The most significant bits count most in the batteries, so the least come up in a stream reversed.
template <unsigned (*next)()>
unsigned reversed() {
  unsigned x = __builtin_bswap32(next());
  x = (x & 0x0f0f0f0fu) << 4 | (x >> 4 & 0x0f0f0f0fu);
  x = (x & 0x33333333u) << 2 | (x >> 2 & 0x33333333u);
  return (x & 0x55555555u) << 1 | (x >> 1 & 0x55555555u);
}

// A linear congruential generator modulo 2^32, which the batteries must reject.
unsigned lcg() {
  static uint32_t state = static_cast<uint32_t>(seed);
  return state = state * 69069u + 1u;
}

struct Stream {
  const char* name;
  unsigned (*next)();
} streams[] = {{"words", words},
               {"words-reversed", reversed<words>},
               {"keys", keys},
               {"keys-reversed", reversed<keys>},
               {"lcg", lcg}};

struct Battery {
  const char* name;
  void (*run)(unif01_Gen*);
} batteries[] = {{"smallcrush", bbattery_SmallCrush}, {"crush", bbattery_Crush}};

template <class T, size_t n>
const T& named(const char* name, const T (&table)[n]) {
  for (const T& entry : table)
    if (std::strcmp(entry.name, name) == 0) return entry;
  std::fprintf(stderr, "nothing is named %s\n", name);
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s smallcrush|crush STREAM [SEED]\n", argv[0]);
    return 2;
  }
  const Battery& battery = named(argv[1], batteries);
  const Stream& stream = named(argv[2], streams);
  if (argc > 3) seed = std::strtoull(argv[3], nullptr, 0);

  char title[100];
  std::snprintf(title, sizeof(title), "%s, seed %llu", stream.name,
                static_cast<unsigned long long>(seed));
  unif01_Gen* generator = unif01_CreateExternGenBits(title, stream.next);
  swrite_Basic = swrite_Host = FALSE;
  battery.run(generator);
  unif01_DeleteExternGenBits(generator);

  for (int i = 0; i < bbattery_NTests; ++i) {
    const double p = bbattery_pVal[i];  // -1: not run
    if (p >= 0 && (p < 1e-10 || p > 1 - 1e-10)) return 1;
  }
  return 0;
}
