// How the loops read and write the operands of a tile. Reads are in place, or through a buffer
// that is converted, gathered or generated; writes are in place or through a buffer too.
#pragma once

#include "../kernels.h"
#include "convert.h"
#include "noise.h"

namespace fastvae::cpu {
namespace {

constexpr int64_t kTile = 1024;  // elements at a time: seven operands of them fill 28 KiB of L1
constexpr int64_t kSlack = 32;   // elements that a loop may touch past a tile

// Elements [column, column + columns) of rows [row, row + rows), packed; row = k * B + b.
struct Piece {
  int64_t row, rows, column, columns;
  int64_t size() const { return rows * columns; }
};

// Whether the rows of a piece follow one another in memory, so that they are one run of elements.
template <class Operand>
inline bool is_packed(const Extent& extent, const Operand& operand, const Piece& piece) {
  if (piece.rows == 1) return true;
  return piece.columns == operand.stride_b &&
         (extent.K == 1 || operand.stride_k == extent.B * operand.stride_b ||
          piece.row / extent.B == (piece.row + piece.rows - 1) / extent.B);
}

// Buffers of a thread's tile, one per operand.
template <class T, int N>
struct Buffers {
  alignas(64) T buffer[N > 0 ? N : 1][kTile + kSlack];
  T* operator[](int i) { return buffer[i]; }
};

template <class T>
void fill(T* out, int64_t n, T value) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = value;
}

// An input that is one number for all elements.
inline double scalar(const Input& input) {
  double value = 1;
  if (input.kind != Input::Kind::constant) read(input.dtype, input.data, 0, 1, &value);
  return value * input.value;
}

// Elements column .. column + n - 1 of a row whose values, from `first` on, many of them share.
template <class T>
void read_shared(const Input& input, int64_t first, int64_t column, int64_t n, T* out) {
  for (int64_t e = column; e < column + n;) {
    const int64_t left = column + n - e, place = e / input.inner % input.count;
    int64_t run;
    if (input.inner == 1) {  // up to where they begin anew
      run = input.count - place < left ? input.count - place : left;
      read(input.dtype, input.data, first + place, run, out);
    } else {
      const int64_t rest = input.inner - e % input.inner;
      run = rest < left ? rest : left;
      T value = 0;
      read(input.dtype, input.data, first + place, 1, &value);
      fill(out, run, value);
    }
    out += run;
    e += run;
  }
}

// The first of n increasing numbers that is not below x.
inline const int64_t* lower_bound(const int64_t* numbers, int64_t n, int64_t x) {
  while (n > 0) {
    const int64_t half = n / 2;
    if (numbers[half] < x) {
      numbers += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return numbers;
}

// Which elements of a piece are not 0, as far as that is known.
struct Places {
  int64_t count = -1;
  int32_t place[kTile + 8];
};

// The rows of a piece, of which most elements are 0. Of columns that are not sorted, which nobody
// promised, some are left out.
template <class T>
void read_sparse(const Extent& extent, const Input& input, const Piece& piece, T* out,
                 Places& places) {
  T found[kTile];
  fill(out, piece.size(), T(0));
  places.count = 0;
  for (int64_t r = 0; r < piece.rows; ++r) {
    const int64_t row = (piece.row + r) % extent.B, end_column = piece.column + piece.columns;
    const int64_t *begin = input.columns + input.index[row],
                  *end = input.columns + input.index[row + 1];
    const int64_t* first = lower_bound(begin, end - begin, piece.column);
    const int64_t* last = first;
    while (last < end && last - first < piece.columns && *last < end_column) ++last;
    read(input.dtype, input.data, first - input.columns, last - first, found);
    for (int64_t i = 0; i < last - first; ++i) {
      if (first[i] < piece.column) continue;
      const int64_t place = r * piece.columns + first[i] - piece.column;
      places.place[places.count++] = static_cast<int32_t>(place);
      out[place] = found[i];
    }
  }
}

// `load` for what must be converted, collected or made: out of line, so that the rest costs no
// call.
template <class T>
__attribute__((noinline)) const T* gather(const Extent& extent, const Input& input,
                                          const Piece& piece, T* buffer) {
  switch (input.kind) {
    case Input::Kind::constant:
      fill(buffer, piece.size(), static_cast<T>(input.value));
      return buffer;
    case Input::Kind::normal:
      return noise<T, true, kTile>(input.key, piece.row * extent.D + piece.column, piece.size(),
                                   buffer);
    case Input::Kind::uniform:
      return noise<T, false, kTile>(input.key, piece.row * extent.D + piece.column, piece.size(),
                                    buffer);
    case Input::Kind::row:
      for (int64_t r = 0; r < piece.rows; ++r) {
        T value = 0;
        read(input.dtype, input.data, row_offset(extent, input, piece.row + r), 1, &value);
        fill(buffer + r * piece.columns, piece.columns, value * static_cast<T>(input.value));
      }
      return buffer;
    case Input::Kind::gathered:
      for (int64_t r = 0; r < piece.rows; ++r)
        read(input.dtype, input.data, input.index[piece.row + r] * input.stride_b + piece.column,
             piece.columns, buffer + r * piece.columns);
      return buffer;
    case Input::Kind::shared:
      for (int64_t r = 0; r < piece.rows; ++r)
        read_shared(input, row_offset(extent, input, piece.row + r), piece.column, piece.columns,
                    buffer + r * piece.columns);
      return buffer;
    case Input::Kind::sparse: {
      Places places;
      read_sparse(extent, input, piece, buffer, places);
      return buffer;
    }
    case Input::Kind::elements:
      break;
  }
  if (is_packed(extent, input, piece)) {
    read(input.dtype, input.data, row_offset(extent, input, piece.row) + piece.column, piece.size(),
         buffer, /*ahead=*/true);
  } else {
    for (int64_t r = 0; r < piece.rows; ++r)
      read(input.dtype, input.data, row_offset(extent, input, piece.row + r) + piece.column,
           piece.columns, buffer + r * piece.columns);
  }
  return buffer;
}

// The piece of an input as T: where it lies if it has that type and is packed, else in `buffer`.
template <class T>
inline const T* load(const Extent& extent, const Input& input, const Piece& piece, T* buffer) {
  if (input.kind == Input::Kind::elements && input.dtype == dtype_of<T> &&
      is_packed(extent, input, piece))
    return static_cast<const T*>(input.data) + row_offset(extent, input, piece.row) + piece.column;
  return gather(extent, input, piece, buffer);
}

// Loads all inputs. Returns a bit for each that is read where it lies; `places`, if it is given,
// are those of the last one.
template <class T, int N>
inline uint32_t load_all(const Extent& extent, const Input* inputs, const Piece& piece,
                         const T** in, Buffers<T, N>& buffers, Places* places = nullptr) {
  uint32_t in_place = 0;
  if (places != nullptr) places->count = -1;
  for (int i = 0; i < N; ++i) {
    if (i == N - 1 && places != nullptr && inputs[i].kind == Input::Kind::sparse) {
      read_sparse(extent, inputs[i], piece, buffers[i], *places);
      in[i] = buffers[i];
      continue;
    }
    in[i] = load<T>(extent, inputs[i], piece, buffers[i]);
    if (inputs[i].kind == Input::Kind::elements && in[i] != buffers[i]) in_place |= 1u << i;
  }
  return in_place;
}

// Where f may write the piece: the output itself, or `buffer`, which `store` then carries there.
template <class T>
T* place(const Extent& extent, const Output& output, const Piece& piece, T* buffer) {
  if (output.data == nullptr || output.dtype != dtype_of<T> || !is_packed(extent, output, piece))
    return buffer;
  return static_cast<T*>(output.data) + row_offset(extent, output, piece.row) + piece.column;
}

template <class T>
void store(const Extent& extent, const Output& output, const Piece& piece, const T* from) {
  if (output.data == nullptr) return;
  if (is_packed(extent, output, piece)) {
    write(output.dtype, output.data, row_offset(extent, output, piece.row) + piece.column,
          piece.size(), from);
    return;
  }
  for (int64_t r = 0; r < piece.rows; ++r)
    write(output.dtype, output.data, row_offset(extent, output, piece.row + r) + piece.column,
          piece.columns, from + r * piece.columns);
}

inline void store_sum(const Sums& sums, int64_t row, double sum) {
  if (sums.dtype == Dtype::f64)
    static_cast<double*>(sums.data)[row] = sum;
  else
    static_cast<float*>(sums.data)[row] = static_cast<float>(sum);
}

}  // namespace
}  // namespace fastvae::cpu
