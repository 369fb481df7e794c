// Multiplies a block's rows by a panel of weights, with the sums in the registers of kTowerThreads threads.
//
// The tile is divided among the warps: kRows / 32 warps (at least 1) over the rows, times the remaining factor over the
// panel's columns. Every sum is one chain over the depth in order from its initial value, whatever the tile, so a
// candidate's score does not depend on its neighbours or on the kernel chosen by batch size.
#pragma once

#include "cuda/device/numbers.h"
#include "cuda/towers/weight_ring.h"

namespace resflow::cuda {

// The positions of a thread's sums in the tile.
template <int kRows>
struct WarpTile {
  static constexpr int kWarps = kTowerThreads / 32;
  static constexpr int kRowWarps = kRows >= 64 ? kRows / 32 : 1;
  static constexpr int kColumnWarps = kWarps / kRowWarps;
  static constexpr int kRowTiles = kRows / 16 / kRowWarps;                               // per warp, of 16 rows
  static constexpr int kColumnTiles = static_cast<int>(kPanelWidth) / 8 / kColumnWarps;  // per warp, of 8 columns
  static_assert(kRowWarps * kColumnWarps == kWarps && kRowTiles * kRowWarps * 16 == kRows);

  int lane = thread_index() % 32;
  int first_row = thread_index() / 32 / kColumnWarps * (kRowTiles * 16);
  int first_column = thread_index() / 32 % kColumnWarps * (kColumnTiles * 8);

  // Row of sums [.., .., 0 and 1] (those of 2 and 3 are 8 rows below), and column of sums 0 and 2 (1 and 3 are next).
  RESFLOW_DEVICE int row(int row_tile) const { return first_row + row_tile * 16 + lane / 4; }
  RESFLOW_DEVICE int column(int column_tile) const { return first_column + column_tile * 8 + lane % 4 * 2; }
};

template <int kRows>
using PanelSums = float[WarpTile<kRows>::kRowTiles][WarpTile<kRows>::kColumnTiles][4];

// Calls visit(row, column, two sums) for this thread's pairs of columns below `width`.
template <int kRows, class Visit>
RESFLOW_DEVICE void for_each_pair(PanelSums<kRows>& sums, int width, Visit visit) {
  const WarpTile<kRows> tile;
#pragma unroll
  for (int n = 0; n < tile.kColumnTiles; ++n) {
    const int column = tile.column(n);
    if (column >= width) continue;
#pragma unroll
    for (int m = 0; m < tile.kRowTiles; ++m) {
      visit(tile.row(m), column, sums[m][n][0], sums[m][n][1]);
      visit(tile.row(m) + 8, column, sums[m][n][2], sums[m][n][3]);
    }
  }
}

// An operand in shared memory, or in global memory if the tile does not fit there.
template <bool kShared>
struct Operand {
  const uint32_t* words;
  int64_t stride;

  RESFLOW_DEVICE uint32_t word(int row, int64_t at) const {
    const uint32_t* const from = words + row * stride + at;
    if constexpr (kShared) return *from;
    return load_global(from);
  }

  // Loads 16 rows and 8 words in the layout of a product.
  RESFLOW_DEVICE void load(uint32_t (&a)[4], int first_row, int64_t word_at, int lane) const {
    if constexpr (kShared) {
      load_matrices(a, words + (first_row + lane % 16) * stride + word_at + lane / 16 * 4);
    } else {
      const int row = first_row + lane / 4;
      const int64_t at = word_at + lane % 4;
      a[0] = word(row, at);
      a[1] = word(row + 8, at);
      a[2] = word(row, at + 4);
      a[3] = word(row + 8, at + 4);
    }
  }
};

// sums += the operand's words from `first` on, times a chunk of `words` words.
template <Precision kPrecision, int kRows, bool kShared>
RESFLOW_DEVICE void multiply_chunk(PanelSums<kRows>& sums, const Operand<kShared>& operand, int64_t first,
                                   const uint32_t* chunk, int words, int width) {
  const WarpTile<kRows> tile;
  if (tile.first_column >= width) return;
  if constexpr (kPrecision == Precision::float32) {
    // Words past the chunk are zero in both operands: skipping them saves time and does not change how NaN propagates.
#pragma unroll 4
    for (int k = 0; k < words; ++k) {
      float a[tile.kRowTiles][2];
#pragma unroll
      for (int m = 0; m < tile.kRowTiles; ++m) {
        a[m][0] = float_of_word(operand.word(tile.row(m), first + k));
        a[m][1] = float_of_word(operand.word(tile.row(m) + 8, first + k));
      }
#pragma unroll
      for (int n = 0; n < tile.kColumnTiles; ++n) {
        const Pair b = *reinterpret_cast<const Pair*>(chunk + k * kRingStride + tile.column(n));
#pragma unroll
        for (int m = 0; m < tile.kRowTiles; ++m) {
          sums[m][n][0] = fmaf(a[m][0], b.low, sums[m][n][0]);
          sums[m][n][1] = fmaf(a[m][0], b.high, sums[m][n][1]);
          sums[m][n][2] = fmaf(a[m][1], b.low, sums[m][n][2]);
          sums[m][n][3] = fmaf(a[m][1], b.high, sums[m][n][3]);
        }
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kChunkWords; k += kProductWords) {
      if (k >= words) break;
      uint32_t a[tile.kRowTiles][4];
#pragma unroll
      for (int m = 0; m < tile.kRowTiles; ++m) {
        operand.load(a[m], tile.first_row + m * 16, first + k, tile.lane);
      }
#pragma unroll
      for (int n = 0; n < tile.kColumnTiles; ++n) {
        const uint32_t* const from =
            chunk + (k + tile.lane % 4) * kRingStride + tile.first_column + n * 8 + tile.lane / 4;
        const uint32_t b[2] = {from[0], from[4 * kRingStride]};
#pragma unroll
        for (int m = 0; m < tile.kRowTiles; ++m) Numbers<kPrecision>::Product::multiply(sums[m][n], a[m], b);
      }
    }
  }
}

// sums += operand [kRows][words] x a panel, whose chunks next() returns to the ring.
template <Precision kPrecision, int kRows, bool kShared, class Next>
RESFLOW_DEVICE void multiply_panel(PanelSums<kRows>& sums, const Operand<kShared>& operand, int64_t words, int width,
                                   WeightRing& ring, Next& next) {
  for (int64_t word = 0; word < words; word += kChunkWords) {
    const uint32_t* const chunk = ring.take(next);
    const int64_t left = words - word;
    multiply_chunk<kPrecision, kRows>(sums, operand, word, chunk,
                                      static_cast<int>(left < kChunkWords ? left : kChunkWords), width);
  }
}

}  // namespace resflow::cuda
