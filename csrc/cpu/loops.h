// The loops that every CPU kernel is made of: tiles of at most kTile elements whose operands lie in
// L1 as float or double, the formula over them, and the results' way back to memory.
//
// This file is compiled once per instruction set, so everything here has internal linkage and only
// torch-free headers are included. How rows are divided depends on the sizes alone, never on the
// number of threads: the results are the same for any number.
#pragma once

#include <memory>
#include <utility>

#include "../kernels/values.h"
#include "access.h"
#include "parallel.h"

#define FASTVAE_INLINE __attribute__((always_inline))
// What kernels/*.cpp mark the functions with that a loop runs.
#define FASTVAE_LAMBDA FASTVAE_INLINE

namespace fastvae::cpu {
namespace {

constexpr int64_t kSegment = 16 * kTile;  // rows longer than this are shared between threads
constexpr int64_t kGrain = 32 * 1024;     // elements that pay for waking a thread
constexpr int64_t kParts = 64;            // of the rows, which are added up side by side

// x[0 .. lanes-1] as far as j < rest, then zeros. What lies past `rest` is read but does not count.
template <int lanes, class T, class F>
inline FASTVAE_INLINE void for_rest(const T* x, int rest, const F& f) {
#pragma omp simd
  for (int j = 0; j < lanes; ++j) {
    const T value = x[j];
    f(j, j < rest ? value : T(0));
  }
}

// Sum of all lanes, by halves: one after the other they would wait for one another.
template <int lanes, class T>
inline FASTVAE_INLINE T total_of(T* x) {
  if constexpr (lanes > 1) {
#pragma omp simd
    for (int j = 0; j < lanes / 2; ++j) x[j] += x[j + lanes / 2];
    return total_of<lanes / 2>(x);
  }
  return x[0];
}

// Sum of n elements.
template <class T>
T sum_of(const T* x, int64_t n) {
  constexpr int lanes = 2 * kLanes;
  alignas(64) T total[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
#pragma omp simd
    for (int j = 0; j < lanes; ++j) total[j] += x[i + j];
  }
  for_rest<lanes>(x + i, static_cast<int>(n - i),
                  [&](int j, T value) FASTVAE_INLINE { total[j] += value; });
  return total_of<lanes>(total);
}

// Sum of log(1 + y[i]) over n <= kTile elements, as logarithms of products. A lane carries its
// product less one, so that nothing is lost beside the one where all factors are small: each step
// adds a relative error of two roundings. It grows to 2^(kTile / 16) at most.
template <class T>
T log_of_product(const T* y, int64_t n) {
  constexpr int lanes = 32;
  alignas(64) T product[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
#pragma omp simd
    for (int j = 0; j < lanes; ++j) product[j] = product[j] * (T(1) + y[i + j]) + y[i + j];
  }
  for_rest<lanes>(y + i, static_cast<int>(n - i), [&](int j, T factor) FASTVAE_INLINE {
    product[j] = product[j] * (T(1) + factor) + factor;
  });
#pragma omp simd
  for (int j = 0; j < lanes / 2; ++j) {
    const T other = product[j + lanes / 2];
    product[j] = math::log1p(product[j] * (T(1) + other) + other);
  }
  return total_of<lanes / 2>(product);
}

template <class T>
double total_of(const T* x, int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += static_cast<double>(x[i]);
  return total;
}

inline double total_of(const Column& column) {
  if (column.sums.dtype == Dtype::f64)
    return total_of(static_cast<const double*>(column.sums.data), column.rows);
  return total_of(static_cast<const float*>(column.sums.data), column.rows);
}

// f over n elements, its values to out0 .. out3 as far as it has them, its factors to `factors` if
// their logarithms are summed. Inputs with a bit in `in_place` are fetched ahead. Returns the sum
// of the terms, or leaves them in `terms` where that is not null. The pointers are parameters, not
// arrays in memory: only then does the compiler see that the loop does not change them.
template <Sum sum, class T, class F, class... In>
inline FASTVAE_INLINE T run(const F& f, int64_t n, uint32_t in_place, T* terms, T* factors, T* out0,
                            T* out1, T* out2, T* out3, const In*... in) {
  const auto visit = [=](int64_t i) FASTVAE_INLINE -> T {
    const auto v = f(in[i]...);
    if constexpr (sum == Sum::logs) factors[i] = v.factor;
    if constexpr (v.count > 0) out0[i] = v.value[0];
    if constexpr (v.count > 1) out1[i] = v.value[1];
    if constexpr (v.count > 2) out2[i] = v.value[2];
    if constexpr (v.count > 3) out3[i] = v.value[3];
    return formulas::product_or_zero(v.weight, v.size);
  };
  const auto visit_all = [=](int64_t begin, int64_t end) FASTVAE_INLINE -> T {
    T total = 0;
    if (sum != Sum::none && terms == nullptr) {
#pragma omp simd reduction(+ : total)
      for (int64_t i = begin; i < end; ++i) total += visit(i);
      return total;
    }
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const T term = visit(i);
      if (sum != Sum::none) terms[i] = term;
    }
    return total;
  };
  T total = 0;
  int64_t i = 0;
  for (; i + kStretch <= n; i += kStretch) {
    uint32_t bits = in_place;
    ((bits & 1 ? prefetch(in + i) : void(), bits >>= 1), ...);
    total += visit_all(i, i + kStretch);
  }
  return total + visit_all(i, n);
}

template <int NO, Sum sum, class T, class F, size_t... I>
inline FASTVAE_INLINE T run_all(const F& f, uint32_t in_place, const T* const* in, T* const* out,
                                T* terms, T* factors, int64_t n, std::index_sequence<I...>) {
  // Not for what a pass reads in place that writes elements and sums too: sigmoid_cross_entropy
  // with its gradient was a tenth slower with prefetches.
  if (NO > 0 && sum != Sum::none) in_place = 0;
  return run<sum>(f, n, in_place, terms, factors, NO > 0 ? out[0] : nullptr,
                  NO > 1 ? out[1] : nullptr, NO > 2 ? out[2] : nullptr, NO > 3 ? out[3] : nullptr,
                  in[I]...);
}

// Whether a function has a shorter form for elements whose last input is 0: f.of_zeros().
template <class F>
constexpr bool knows_zeros = requires(F f) { f.of_zeros(); };

// A function in two steps, where one would need more registers than there are: `first` returns
// values that `second` takes before the inputs.
template <class F>
constexpr int steps_between = [] {
  if constexpr (requires { F::between; }) return F::between;
  return 0;
}();

template <int NO, Sum sum, class T, class F, size_t... I, size_t... B>
void run_in_steps(const F& f, const T* const* in, T* const* out, T* terms, int64_t n,
                  std::index_sequence<I...>, std::index_sequence<B...>) {
  Buffers<T, sizeof...(B)> between;
  T* const to[] = {between[B]...};
  run_all<sizeof...(B), Sum::none, T>(f.first(), 0, in, to, nullptr, nullptr, n,
                                      std::index_sequence<I...>());
  const T* const all[] = {between[B]..., in[I]...};
  run_all<NO, sum, T>(f.second(), 0, all, out, terms, nullptr, n,
                      std::make_index_sequence<sizeof...(B) + sizeof...(I)>());
}

// The shorter form over all elements, and f over those that are not 0, side by side.
template <int NO, Sum sum, class T, class F, size_t... I>
T run_zeros(const F& f, const T* const* in, T* const* out, T* terms, int64_t n,
            const Places& nonzero, std::index_sequence<I...> indices) {
  constexpr int NI = sizeof...(I);
  const int64_t count = nonzero.count;
  const int32_t* place = nonzero.place;
  // Whole vectors, filled up with some element: the rest of a loop, one by one, may take longer
  // than all before it.
  constexpr int64_t lanes = 2 * kLanes;
  const int64_t filled = ceil_div(count, lanes) * lanes;
  // Collected before anything is written: an output may be an input.
  Buffers<T, NI> some_in;
  Buffers<T, NO> some_out;
  alignas(64) T some_terms[kTile + kSlack], all_terms[kTile + kSlack];
  const T* packed[NI];
  for (int j = 0; j < NI; ++j) {
    T* to = some_in[j];
    for (int64_t i = 0; i < count; ++i) to[i] = in[j][place[i]];
    for (int64_t i = count; i < filled; ++i) to[i] = to[0];
    packed[j] = to;
  }
  T* results[NO > 0 ? NO : 1];
  for (int o = 0; o < NO; ++o) results[o] = some_out[o];
  T* const to = terms != nullptr ? terms : all_terms;
  const auto zeros = f.of_zeros();
  constexpr int between = steps_between<std::remove_const_t<decltype(zeros)>>;
  if constexpr (between > 0)
    run_in_steps<NO, sum>(zeros, in, out, to, n, indices, std::make_index_sequence<between>());
  else
    run_all<NO, sum, T>(zeros, 0, in, out, to, nullptr, n, indices);
  run_all<NO, sum, T>(f, 0, packed, results, some_terms, nullptr, filled, indices);
  for (int o = 0; o < NO; ++o)
    for (int64_t i = 0; i < count; ++i) out[o][place[i]] = results[o][i];
  if constexpr (sum == Sum::none) return 0;
  for (int64_t i = 0; i < count; ++i) to[place[i]] = some_terms[i];
  return terms != nullptr ? T(0) : sum_of(all_terms, n);
}

// Of each byte, the places of its bits that are set, in order, and their number.
struct BitPlaces {
  int32_t place[256][8] = {};
  uint8_t count[256] = {};
};
constexpr BitPlaces kBitPlaces = [] {
  BitPlaces bits;
  for (int byte = 0; byte < 256; ++byte)
    for (int bit = 0; bit < 8; ++bit)
      if (byte >> bit & 1) bits.place[byte][bits.count[byte]++] = bit;
  return bits;
}();

// Which elements are not 0. Eight at a time, without a branch: which of them it is cannot be
// foreseen.
template <class T>
void find_places(const T* x, int64_t n, Places& places) {
  alignas(64) uint8_t flags[kTile + 8];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) flags[i] = x[i] != T(0) ? 1 : 0;
  for (int i = 0; i < 8; ++i) flags[n + i] = 0;
  int64_t count = 0;
  for (int32_t i = 0; i < n; i += 8) {
    uint64_t word;
    memcpy(&word, flags + i, sizeof(word));
    const uint64_t byte = word * 0x0102040810204080u >> 56;  // the eight lowest bits, collected
#pragma omp simd
    for (int j = 0; j < 8; ++j) places.place[count + j] = i + kBitPlaces.place[byte][j];
    count += kBitPlaces.count[byte];
  }
  places.count = count;
}

// Whether so few elements are not 0 that there is something to gain. Fills `places` where they are
// not known.
template <class T>
bool are_few(const T* x, int64_t n, Places& places) {
  if (places.count < 0) find_places(x, n, places);
  return 2 * places.count <= n;
}

template <int NO, Sum sum, class T, class F, size_t... I>
inline FASTVAE_INLINE T run_tile(const F& f, uint32_t in_place, const T* const* in, T* const* out,
                                 T* terms, T* factors, int64_t n, Places* places,
                                 std::index_sequence<I...> indices) {
  if constexpr (knows_zeros<F>) {
    if (are_few(in[sizeof...(I) - 1], n, *places))
      return run_zeros<NO, sum, T>(f, in, out, terms, n, *places, indices);
  }
  return run_all<NO, sum, T>(f, in_place, in, out, terms, factors, n, indices);
}

// Where a function asks for them, Places, else nothing.
template <class F>
struct PlacesOf {
  Places places;
  Places* get() { return &places; }
};
template <class F>
  requires(!knows_zeros<F>)
struct PlacesOf<F> {
  static constexpr Places* get() { return nullptr; }
};

// Walks over all rows; each (k, b) row by itself.
template <class T, Sum sum, int NI, int NO, class F>
void walk(const Extent& extent, const Sums& sums, const Output* outputs, const Input* inputs,
          const F& f) {
  const int64_t rows = extent.K * extent.B;
  const int64_t D = extent.D;
  const int64_t group = D < kTile ? kTile / (D > 0 ? D : 1) : 1;      // whole rows in a tile
  const int64_t segments = D > kSegment ? ceil_div(D, kSegment) : 1;  // parts of a row
  std::unique_ptr<double[]> partial;
  if (sum != Sum::none && segments > 1)
    partial.reset(new double[static_cast<size_t>(rows * segments)]);

  // Part of one row, or a few whole rows.
  auto visit = [&](const Piece& piece, T* terms, T* factors) FASTVAE_INLINE -> T {
    Buffers<T, NI> in_buffers;
    Buffers<T, NO> out_buffers;
    const T* in[NI];
    T* out[NO > 0 ? NO : 1] = {};
    PlacesOf<F> places;
    const uint32_t in_place = load_all(extent, inputs, piece, in, in_buffers, places.get());
    for (int o = 0; o < NO; ++o) out[o] = place<T>(extent, outputs[o], piece, out_buffers[o]);
    const T total = run_tile<NO, sum>(f, in_place, in, out, terms, factors, piece.size(),
                                      places.get(), std::make_index_sequence<NI>());
    for (int o = 0; o < NO; ++o)
      if (out[o] == out_buffers[o]) store<T>(extent, outputs[o], piece, out[o]);
    return total;
  };

  if (group > 1) {
    parallel_for(ceil_div(rows, group), ceil_div(kGrain, kTile), [&](int64_t begin, int64_t end) {
      alignas(64) T terms[kTile + kSlack], factors[sum == Sum::logs ? kTile + kSlack : 1];
      for (int64_t g = begin; g < end; ++g) {
        const int64_t row = g * group;
        const Piece piece{row, rows - row < group ? rows - row : group, 0, D};
        visit(piece, terms, factors);
        if (sum == Sum::none) continue;
        for (int64_t r = 0; r < piece.rows; ++r) {
          T total = sum_of(terms + r * D, D);
          if (sum == Sum::logs) total += log_of_product(factors + r * D, D);
          store_sum(sums, row + r, static_cast<double>(total));
        }
      }
    });
    return;
  }

  const int64_t segment = segments > 1 ? kSegment : D;
  parallel_for(rows * segments, ceil_div(kGrain, segment), [&](int64_t begin, int64_t end) {
    alignas(64) T factors[sum == Sum::logs ? kTile + kSlack : 1];
    for (int64_t s = begin; s < end; ++s) {
      const int64_t row = s / segments, first = s % segments * segment;
      const int64_t last = D - first < segment ? D : first + segment;
      // Float within a tile, double between tiles: the error of a sum does not grow with D.
      double total = 0;
      for (int64_t column = first; column < last; column += kTile) {
        const Piece piece{row, 1, column, last - column < kTile ? last - column : kTile};
        total += static_cast<double>(visit(piece, nullptr, factors));
        if (sum == Sum::logs) total += static_cast<double>(log_of_product(factors, piece.size()));
      }
      if (sum == Sum::none) continue;
      if (segments > 1)
        partial[s] = total;
      else
        store_sum(sums, row, total);
    }
  });
  if (sum != Sum::none && segments > 1) {
    for (int64_t row = 0; row < rows; ++row) {
      double total = 0;
      for (int64_t s = 0; s < segments; ++s) total += partial[row * segments + s];
      store_sum(sums, row, total);
    }
  }
}

// Walks over the rows of the data; what f returns is summed over the K samples of each.
template <class T, int NI, int NO, class F>
void walk_folding(const Extent& extent, const Output* outputs, const Input* inputs, const F& f) {
  const int64_t D = extent.D;
  const Extent rows_of_data{1, extent.B, D};
  const int64_t group = D < kTile ? kTile / (D > 0 ? D : 1) : 1;
  const int64_t tiles_per_row = D > kTile ? ceil_div(D, kTile) : 1;
  const int64_t tiles = ceil_div(extent.B, group) * tiles_per_row;
  parallel_for(tiles, ceil_div(kGrain, kTile * extent.K), [&](int64_t begin, int64_t end) {
    Buffers<T, NI> in_buffers;
    Buffers<T, NO> out_buffers, sum_buffers;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = t / tiles_per_row * group, column = t % tiles_per_row * kTile;
      const Piece target{row, extent.B - row < group ? extent.B - row : group, column,
                         D - column < kTile ? D - column : kTile};
      for (int o = 0; o < NO; ++o) fill(sum_buffers[o], target.size(), T(0));
      for (int64_t k = 0; k < extent.K; ++k) {
        Piece piece = target;
        piece.row += k * extent.B;
        const T* in[NI];
        T* out[NO];
        PlacesOf<F> places;
        const uint32_t in_place = load_all(extent, inputs, piece, in, in_buffers, places.get());
        for (int o = 0; o < NO; ++o) out[o] = out_buffers[o];
        run_tile<NO, Sum::none, T>(f, in_place, in, out, nullptr, nullptr, piece.size(),
                                   places.get(), std::make_index_sequence<NI>());
        for (int o = 0; o < NO; ++o) {
          T* sum = sum_buffers[o];
#pragma omp simd
          for (int64_t i = 0; i < piece.size(); ++i) sum[i] += out[o][i];
        }
      }
      for (int o = 0; o < NO; ++o) store<T>(rows_of_data, outputs[o], target, sum_buffers[o]);
    }
  });
}

// Walks over all rows; of what f returns, the last NC values are summed over them, in double. Parts
// of the rows are summed by themselves, then one after the other. So are the terms of a row, tile
// by tile.
template <class T, Sum sum, int NI, int NO, int NC, class F>
void walk_columns(const Extent& extent, const Sums& sums, const Output* outputs,
                  const Sums* columns, const Input* inputs, const F& f) {
  static_assert(sum != Sum::logs);
  const int64_t rows = extent.K * extent.B, D = extent.D;
  if (D == 0) return;
  const int64_t width = D < kTile ? D : kTile, group = kTile / width;
  const int64_t tiles = ceil_div(D, kTile);
  const int64_t worth = ceil_div(kGrain, width), even = ceil_div(rows, ceil_div(kParts, tiles));
  const int64_t rows_of_part = worth > even ? worth : even;
  const int64_t parts = ceil_div(rows, rows_of_part);
  const std::unique_ptr<double[]> partial(new double[static_cast<size_t>(NC * parts * D)]());
  std::unique_ptr<double[]> of_rows;
  if (sum != Sum::none) of_rows.reset(new double[static_cast<size_t>(rows * tiles)]);
  parallel_for(parts * tiles, 1, [&](int64_t begin, int64_t end) {
    Buffers<T, NI> in_buffers;
    Buffers<T, NO + NC> out_buffers;
    alignas(64) T terms[sum != Sum::none ? kTile + kSlack : 1];
    for (int64_t s = begin; s < end; ++s) {
      const int64_t part = s / tiles, column = s % tiles * kTile;
      const int64_t last = rows < (part + 1) * rows_of_part ? rows : (part + 1) * rows_of_part;
      Piece piece{part * rows_of_part, 0, column, D - column < kTile ? D - column : kTile};
      for (; piece.row < last; piece.row += piece.rows) {
        piece.rows = last - piece.row < group ? last - piece.row : group;
        const T* in[NI];
        T* out[NO + NC];
        PlacesOf<F> places;
        const uint32_t in_place = load_all(extent, inputs, piece, in, in_buffers, places.get());
        for (int o = 0; o < NO; ++o) out[o] = place<T>(extent, outputs[o], piece, out_buffers[o]);
        for (int c = NO; c < NO + NC; ++c) out[c] = out_buffers[c];
        run_tile<NO + NC, sum, T>(f, in_place, in, out, terms, nullptr, piece.size(), places.get(),
                                  std::make_index_sequence<NI>());
        for (int64_t r = 0; sum != Sum::none && r < piece.rows; ++r)
          of_rows[(piece.row + r) * tiles + s % tiles] =
              static_cast<double>(sum_of(terms + r * piece.columns, piece.columns));
        for (int o = 0; o < NO; ++o)
          if (out[o] == out_buffers[o]) store<T>(extent, outputs[o], piece, out[o]);
        for (int c = 0; c < NC; ++c) {
          double* total = partial.get() + (c * parts + part) * D + column;
          for (int64_t r = 0; r < piece.rows; ++r) {
            const T* row = out[NO + c] + r * piece.columns;
#pragma omp simd
            for (int64_t i = 0; i < piece.columns; ++i) total[i] += static_cast<double>(row[i]);
          }
        }
      }
    }
  });
  for (int c = 0; c < NC; ++c) {
    if (columns[c].data == nullptr) continue;
    for (int64_t i = 0; i < D; ++i) {
      double total = 0;
      for (int64_t part = 0; part < parts; ++part) total += partial[(c * parts + part) * D + i];
      store_sum(columns[c], i, total);
    }
  }
  for (int64_t row = 0; sum != Sum::none && row < rows; ++row)
    store_sum(sums, row, total_of(of_rows.get() + row * tiles, tiles));
}

template <int N>
bool any_double(const Input (&inputs)[N]) {
  for (const Input& input : inputs)
    if (input.dtype == Dtype::f64) return true;
  return false;
}

// The loops by name. f takes the inputs' elements in order and is generic: it runs in double where
// any input is double, else in float.

// A function that takes some numbers after the elements, each the same for all of them.
template <class F, class... Number>
auto with_numbers(const F& f, const Number&... numbers) {
  return [f, ... number = scalar(numbers)](auto first, auto... rest)
             FASTVAE_INLINE { return f(first, rest..., decltype(first)(number)...); };
}

template <Sum sum, int NO, class F, class... In>
void walk_in_precision(const Extent& extent, const Sums& sums, const Output* outputs, const F& f,
                       const In&... in) {
  const Input inputs[] = {in...};
  if (any_double(inputs))
    walk<double, sum, sizeof...(In), NO>(extent, sums, outputs, inputs, f);
  else
    walk<float, sum, sizeof...(In), NO>(extent, sums, outputs, inputs, f);
}

// A function of f's terms alone, with no outputs.
template <class F>
struct Term {
  F f;
  template <class... T>
  FASTVAE_INLINE auto operator()(T... x) const {
    return term_and_values(f(x...));
  }
  auto of_zeros() const
    requires knows_zeros<F>
  {
    return Term<decltype(f.of_zeros())>{f.of_zeros()};
  }
  // In two steps where f is.
  static constexpr int between = steps_between<F>;
  auto first() const
    requires(between > 0)
  {
    return f.first();
  }
  auto second() const
    requires(between > 0)
  {
    return Term<decltype(f.second())>{f.second()};
  }
};

// f returns the term alone, with or without a logarithm.
template <Sum sum = Sum::terms, class F, class... In>
void row_sum(const Extent& extent, const Sums& sums, const F& f, const In&... in) {
  walk_in_precision<sum, 0>(extent, sums, nullptr, Term<F>{f}, in...);
}

// f returns term_and_values(...): one term, likewise, and a value for each output.
template <Sum sum = Sum::terms, int NO, class F, class... In>
void row_sum_and_map(const Extent& extent, const Sums& sums, const Output (&outputs)[NO],
                     const F& f, const In&... in) {
  walk_in_precision<sum, NO>(extent, sums, outputs, f, in...);
}

// The same, for what is called so seldom that a GPU has it for elements of any type alone.
template <Sum sum = Sum::terms, int NO, class F, class... In>
void seldom_row_sum_and_map(const Extent& extent, const Sums& sums, const Output (&outputs)[NO],
                            const F& f, const In&... in) {
  row_sum_and_map<sum>(extent, sums, outputs, f, in...);
}

// f returns values(...), one for each output.
template <int NO, class F, class... In>
void map(const Extent& extent, const Output (&outputs)[NO], const F& f, const In&... in) {
  walk_in_precision<Sum::none, NO>(extent, {}, outputs, f, in...);
}

// As map, with nothing to do where the factor, one number for all, is 1.
template <int NO, class F, class... In>
void map_unless_one(const Extent& extent, const Output (&outputs)[NO], const F& f,
                    const PerRow& factor, const In&... in) {
  if (scalar(factor) != 1) map(extent, outputs, f, factor, in...);
}

// As map, summed over the samples: outputs are [B, D].
template <int NO, class F, class... In>
void map_folding(const Extent& extent, const Output (&outputs)[NO], const F& f, const In&... in) {
  const Input inputs[] = {in...};
  if (any_double(inputs))
    walk_folding<double, sizeof...(In), NO>(extent, outputs, inputs, f);
  else
    walk_folding<float, sizeof...(In), NO>(extent, outputs, inputs, f);
}

template <Sum sum, int NO, int NC, class F, class... In>
void walk_columns_in_precision(const Extent& extent, const Sums& sums, const Output* outputs,
                               const Sums* columns, const F& f, const In&... in) {
  const Input inputs[] = {in...};
  if (any_double(inputs))
    walk_columns<double, sum, sizeof...(In), NO, NC>(extent, sums, outputs, columns, inputs, f);
  else
    walk_columns<float, sum, sizeof...(In), NO, NC>(extent, sums, outputs, columns, inputs, f);
}

// f returns values(...): one for each output, then one for each sum over all rows, [D].
template <int NO, int NC, class F, class... In>
void map_and_column_sum(const Extent& extent, const Output (&outputs)[NO],
                        const Sums (&columns)[NC], const F& f, const In&... in) {
  walk_columns_in_precision<Sum::none, NO, NC>(extent, {}, outputs, columns, f, in...);
}

// f returns term_and_values(...) with a term without a logarithm, likewise.
template <int NO, int NC, class F, class... In>
void row_sum_map_and_column_sum(const Extent& extent, const Sums& sums, const Output (&outputs)[NO],
                                const Sums (&columns)[NC], const F& f, const In&... in) {
  walk_columns_in_precision<Sum::terms, NO, NC>(extent, sums, outputs, columns, f, in...);
}

template <int NC, class F, class... In>
void column_sum(const Extent& extent, const Sums (&columns)[NC], const F& f, const In&... in) {
  walk_columns_in_precision<Sum::none, 0, NC>(extent, {}, nullptr, columns, f, in...);
}

// For each of several parameters, f takes the number of its step and returns a function of its
// elements, which takes value, gradient and moments and returns values(value, moments).
template <class F>
void map_each(const Parameter* parameters, int64_t count, const F& f) {
  const auto from = [](const float* data) {
    Input input;
    input.kind = Input::Kind::elements;
    input.data = data;
    return input;
  };
  const auto to = [](float* data) { return Output{Dtype::f32, data}; };
  for (const Parameter* p = parameters; p < parameters + count; ++p)
    map({1, 1, p->size}, {to(p->value), to(p->exp_avg), to(p->exp_avg_sq)},
        f(p->step ? *p->step : p->step_value), from(p->value), from(p->grad), from(p->exp_avg),
        from(p->exp_avg_sq));
}

// f takes the total of each column and returns values(...), one for each output.
template <int NO, class F, class... C>
void total(const Sums (&outputs)[NO], const F& f, const C&... columns) {
  const auto result = f(total_of(columns)...);
  for (int o = 0; o < NO; ++o) store_sum(outputs[o], 0, result.value[o]);
}

}  // namespace
}  // namespace fastvae::cpu
