// Which thread of a GPU takes which elements. This is plain arithmetic on sizes, which can be
// tested without a GPU. It depends on nothing else, so a sum runs in the same order at every call
// and on every GPU.
#pragma once

#include "kernels.h"

namespace fastvae {

constexpr int kThreads = 256;  // of a block
constexpr int kWarp = 32;
constexpr int64_t kBlocks = 1024;  // that fill any GPU of today: 132 processors of an H200 by 8

// Rows of `columns` elements, cut among groups of `lanes` threads: a group takes one segment of one
// row. Its threads take `vector` elements each, side by side, and go on to what follows.
struct Tiling {
  int64_t rows, columns;
  int vector;        // elements that a thread takes at a time
  int lanes;         // threads of a group: a power of two up to a warp, or a whole block
  int shift;         // its logarithm
  int64_t segments;  // of a row
  int64_t segment;   // columns of each but the last
  int64_t blocks;
};

// How a loop has its rows cut.
struct Cut {
  bool summed = true;  // the rows
  int least = 4;  // threads of a group, where a row has as many vectors: of a few side by side,
                  // each takes but a part of what the memory moves for it
  int busy = 6;   // groups are halved until a row's vectors are so many times the idle threads
};

// Threads of a row's group. A block where there are too few rows for a warp each, and the row is
// long enough to leave its threads something to do. Else a warp or a part of it: small groups leave
// fewer threads idle at a row's end, and take what is done once for a row to more elements; so they
// are halved as long as that helps and enough blocks are left.
FASTVAE_FN int lanes_for(int64_t rows, int64_t columns, int vector, const Cut& cut) {
  const int64_t vectors = ceil_div(columns, vector), fill = kBlocks * kThreads;
  if ((rows * kWarp < fill && vectors >= 2 * kThreads) ||
      (rows * kWarp * 4 < fill && vectors > 2 * kWarp))
    return kThreads;
  int lanes = 1;
  while (lanes < kWarp && lanes < vectors) lanes *= 2;
  for (; lanes > cut.least && rows * lanes / 2 >= fill; lanes /= 2) {
    const int64_t taken = ceil_div(vectors, lanes) * lanes;
    if (taken > lanes && cut.busy * (taken - vectors) <= vectors) break;
  }
  return lanes;
}

// Several blocks take a row where there are too few rows for a block each. Where a row is summed,
// a second launch adds up their parts, so that they are no more than fill a GPU; where none is,
// they are short, and none is left alone with its rest when the others have ended.
FASTVAE_FN Tiling tile(int64_t rows, int64_t columns, int vector, const Cut& cut, int lanes) {
  Tiling t{rows, columns, vector, lanes, 0, 1, columns, 0};
  while (1 << t.shift < lanes) ++t.shift;
  if (t.lanes == kThreads && rows > 0 && rows < kBlocks) {
    const int64_t step = int64_t{kThreads} * vector;
    const int64_t steps = ceil_div(columns, step);
    const int64_t wanted = ceil_div(kBlocks, rows);
    const int64_t possible = steps < 4 ? 1 : steps / 2;  // two steps each
    int64_t each = ceil_div(steps, wanted < possible ? wanted : possible);
    if (!cut.summed && each > 8) each = 8;
    t.segment = each * step;
    t.segments = ceil_div(columns, t.segment);
  }
  t.blocks = ceil_div(rows * t.segments, kThreads >> t.shift);
  return t;
}

FASTVAE_FN Tiling tile(int64_t rows, int64_t columns, int vector, const Cut& cut) {
  return tile(rows, columns, vector, cut, lanes_for(rows, columns, vector, cut));
}

// What one thread takes: `vector` columns from `first` on, then from each `step` further, as far as
// `end`. A thread without a row has rows <= row.
struct Place {
  int64_t group, row, first, end, step;
  int lane;
};

FASTVAE_FN Place place_of(const Tiling& t, int64_t block, int thread) {
  Place p;
  p.lane = thread & (t.lanes - 1);
  p.group = block * (kThreads >> t.shift) + (thread >> t.shift);
  int64_t begin = 0;
  p.row = p.group;
  if (t.segments > 1) {
    p.row = t.blocks <= UINT32_MAX  // the usual one, and the shorter division
                ? static_cast<uint32_t>(p.group) / static_cast<uint32_t>(t.segments)
                : p.group / t.segments;
    begin = (p.group - p.row * t.segments) * t.segment;
  }
  p.first = begin + int64_t{p.lane} * t.vector;
  p.end = t.columns - begin < t.segment ? t.columns : begin + t.segment;
  p.step = int64_t{t.lanes} * t.vector;
  return p;
}

// Blocks that add up a column of row sums: one alone as long as a second launch would take longer.
FASTVAE_FN int64_t parts_of_column(int64_t rows) {
  const int64_t each = 4096;
  if (rows <= 4 * each) return 1;
  const int64_t parts = ceil_div(rows, each);
  return parts < 128 ? parts : 128;
}

// Rows of `columns` elements, cut for sums over the rows. A group of `lanes` threads takes `vector`
// columns each, side by side, of every `step`-th row of a block's; its sum is a part, which a
// second launch adds to the others.
struct ColumnTiling {
  int64_t rows, columns;
  int vector;
  int lanes;               // a power of two up to a block
  int64_t column_blocks;   // side by side
  int64_t rows_per_block;  // a multiple of the groups in a block
  int64_t parts;           // of each column
  int64_t blocks;
};

FASTVAE_FN ColumnTiling tile_columns(int64_t rows, int64_t columns, int vector) {
  ColumnTiling t{rows, columns, vector, 1, 0, 0, 0, 0};
  const int64_t vectors = ceil_div(columns, vector);
  while (t.lanes < kThreads && t.lanes < vectors) t.lanes *= 2;
  // As long as a tenth of the threads would have no column, and half a warp reads 16 bytes each.
  while (t.lanes >= kWarp && 10 * (ceil_div(vectors, t.lanes) * t.lanes - vectors) > vectors)
    t.lanes /= 2;
  const int64_t groups = kThreads / t.lanes;
  t.column_blocks = ceil_div(vectors, t.lanes);
  if (rows == 0 || columns == 0) return t;
  const int64_t wanted = ceil_div(kBlocks, t.column_blocks);
  const int64_t possible = ceil_div(rows, 8 * groups);  // eight rows for each thread
  const int64_t row_blocks = wanted < possible ? wanted : possible;
  t.rows_per_block = ceil_div(ceil_div(rows, row_blocks), groups) * groups;
  const int64_t needed = ceil_div(rows, t.rows_per_block);
  t.parts = needed * groups;
  t.blocks = needed * t.column_blocks;
  return t;
}

// What one thread takes: `vector` columns from `column` on, of the rows from `row` on, each `step`
// further, as far as `end`. A thread without a column has columns <= column.
struct ColumnPlace {
  int64_t column, part, row, end, step;
};

FASTVAE_FN ColumnPlace column_place_of(const ColumnTiling& t, int64_t block, int thread) {
  ColumnPlace p;
  p.step = kThreads / t.lanes;
  const int64_t row_block = block / t.column_blocks, group = thread / t.lanes;
  p.column = (block % t.column_blocks * t.lanes + (thread & (t.lanes - 1))) * t.vector;
  p.part = row_block * p.step + group;
  p.row = row_block * t.rows_per_block + group;
  const int64_t end = (row_block + 1) * t.rows_per_block;
  p.end = end < t.rows ? end : t.rows;
  return p;
}

// Several tensors, one after the other, cut into chunks of one tensor each: one for each block. A
// chunk is short, so that a few million elements are shared out evenly, and a thread has two
// vectors of it, which it can read at once.
constexpr int kTensors = 48;  // of one launch: a kernel's parameters are 4 KiB at most
constexpr int kVector = 4;
constexpr int kVectors = 2;
constexpr int64_t kChunk = int64_t{kVectors} * kVector * kThreads;

struct Chunks {
  int tensors = 0;
  int64_t blocks = 0;
  int64_t first[kTensors];  // block of each tensor
};

// One more tensor, which is not empty; `tensors` must be less than kTensors.
FASTVAE_FN void add_tensor(Chunks& chunks, int64_t size) {
  chunks.first[chunks.tensors++] = chunks.blocks;
  chunks.blocks += ceil_div(size, kChunk);
}

FASTVAE_FN int tensor_of(const Chunks& chunks, int64_t block) {
  int tensor = 0;
  for (int half = 32; half > 0; half /= 2)
    if (tensor + half < chunks.tensors && chunks.first[tensor + half] <= block) tensor += half;
  return tensor;
}

// Where a thread's vector number `v` begins in the block's tensor, maybe past its end.
FASTVAE_FN int64_t element_of(const Chunks& chunks, int tensor, int64_t block, int thread, int v) {
  return (block - chunks.first[tensor]) * kChunk + (int64_t{v} * kThreads + thread) * kVector;
}

}  // namespace fastvae
