// Divides rows into tiles for threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/threads/thread_pool.h"

namespace resflow::cpu {

// Tiles of 24 to 192 rows were measured to be within 4 % of each other; 48 rows of 600 inputs are 115 KB, which with a
// panel of weights (147 KB) leave half of a 512 KB L2 free.
constexpr int64_t kTileRows = 48;

// On several threads the last tiles of a call are small: tail tiles per thread, and register blocks per tail tile.
constexpr int64_t kTailTiles = 4;
constexpr int64_t kTailBlocks = 2;

// Up to this many rows waking a thread costs more than it gains: it takes 10 to 60 us if there was a pause before the
// call, and 16 rows take 30 to 60.
constexpr int64_t kRowsWithoutHelp = 16;

// Divides `count` rows into tiles of about kTileRows and, for several threads, a tail of small ones, so that no thread
// waits long for another's last tile (prerank3, 1024 rows on 2 threads: 88 % of the peak without the tail, 90 % with).
class Tiling {
 public:
  struct Rows {
    int64_t first;
    int64_t count;
  };

  Tiling(int64_t count, int64_t wanted_threads, int64_t block_rows) : count_(count), block_rows_(block_rows) {
    if (count <= kRowsWithoutHelp) {
      cut_small(wanted_threads);
      return;
    }
    const int64_t blocks = (count + block_rows - 1) / block_rows;
    threads = std::max<int64_t>(std::min(wanted_threads, blocks), 1);
    const int64_t tail_tiles = threads > 1 ? kTailTiles * threads : 0;
    tail_blocks_ = std::min(blocks / 2, tail_tiles * kTailBlocks);
    tail_tiles_ = std::min(tail_tiles, tail_blocks_);
    full_blocks_ = blocks - tail_blocks_;
    full_tiles_ = (full_blocks_ * block_rows + kTileRows - 1) / kTileRows;
    full_tiles_ = std::min((full_tiles_ + threads - 1) / threads * threads, full_blocks_);
    tiles = full_tiles_ + tail_tiles_;
  }

  // The rows of a tile; empty past the last tile.
  Rows rows(int64_t tile) const {
    if (tile >= tiles) return {count_, 0};
    const int64_t first = first_row(tile);
    return {first, first_row(tile + 1) - first};
  }

  int64_t tiles;
  int64_t threads;

 private:
  // One tile per awake thread, with at least a block's rows: no thread is woken.
  void cut_small(int64_t wanted_threads) {
    threads = std::max<int64_t>(std::min(wanted_threads, count_ / block_rows_), 1);
    if (threads > 1) threads = 1 + awake_workers(threads - 1);
    block_rows_ = std::max<int64_t>((count_ + threads - 1) / threads, 1);
    full_blocks_ = full_tiles_ = tiles = threads;
    tail_blocks_ = tail_tiles_ = 0;
  }

  // The blocks of either part are distributed over its tiles as evenly as possible.
  int64_t first_row(int64_t tile) const {
    const int64_t block = tile < full_tiles_ ? full_blocks_ * tile / full_tiles_
                          : tail_tiles_      ? full_blocks_ + tail_blocks_ * (tile - full_tiles_) / tail_tiles_
                                             : full_blocks_;
    return std::min(block * block_rows_, count_);
  }

  int64_t count_;
  int64_t block_rows_;
  int64_t full_blocks_;
  int64_t full_tiles_;
  int64_t tail_blocks_;
  int64_t tail_tiles_;
};

}  // namespace resflow::cpu
