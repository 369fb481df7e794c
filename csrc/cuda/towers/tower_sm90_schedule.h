// The loads of the Hopper kernel of tower_sm90.h, their destinations and order: plain C++, so that tests can follow it.
//
// Blocks run in clusters of two, which share the loads of weights: each block loads half of them, into both. A block
// takes every block_count()-th tile, with 64 rows per computing warpgroup; both blocks of a cluster take the same
// number of tiles, the last of which may be past the last row. The tile's x is entirely in shared memory, in chunks of
// 64 inputs; the weights stream through a ring of stages: for each tile and task the chunks of the first layer, then
// the second layer as one stage. Layers are 128 and 64 wide.
#pragma once

#include <cstdint>

#include "core/candidates.h"
#include "core/tensor_panels.h"

namespace resflow::cuda {

constexpr int32_t kGroupRows = 64;
constexpr int32_t kMostGroups = 2;
constexpr int kTowerCluster = 2;
constexpr int64_t tower_width(int layer) { return layer == 0 ? 128 : 64; }
constexpr int64_t kStageBytes = 128 * kChunkRowBytes;  // a chunk of the first layer, both chunks of the second
constexpr int kMostChunks = 12;                        // chunks of x: 192 KiB
constexpr int kLeastStages = 2;
constexpr int kMostStages = 6;

// Offsets, in floats, of a task's vectors in shared memory: slope, scale and shift of the first layer; bias, slope,
// scale and shift of the second; the head. The first layer's biases are not among them: they are the initial sums,
// which are loaded much earlier.
constexpr int64_t kBiasAt = 3 * tower_width(0);  // of the second layer
constexpr int64_t slope_at(int layer) { return layer == 0 ? 0 : kBiasAt + tower_width(1); }
constexpr int64_t scale_at(int layer) { return slope_at(layer) + tower_width(layer); }
constexpr int64_t shift_at(int layer) { return scale_at(layer) + tower_width(layer); }
constexpr int64_t kHeadAt = shift_at(1) + tower_width(1);
constexpr int64_t kHeadFloats = tower_width(1) + 4;  // weight and bias, padded to a multiple of 16 bytes
constexpr int64_t kVectorFloats = kHeadAt + kHeadFloats;

// The stage that a step of the ring uses, and the parity of its round; the loader and the computing warps each advance
// one.
struct RingPlace {
  int32_t stage = 0;
  uint32_t parity = 0;

  constexpr void advance(int32_t stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

struct TowerSchedule {
  int32_t tiles;
  int32_t tasks;
  int32_t first_chunk;   // of the weights: earlier chunks are the user's only
  int32_t chunks;        // of x
  int32_t first_column;  // of x in its first chunk, negative if the chunk begins with the user's last inputs
  int32_t groups;
  int32_t stages;

  constexpr int32_t rows() const { return groups * kGroupRows; }                               // per tile
  constexpr int32_t x_bytes() const { return rows() * static_cast<int32_t>(kChunkRowBytes); }  // per chunk of x

  // Bytes of shared memory: x, the ring and the vectors, and two barriers per chunk, stage and vectors (TowerMemory).
  constexpr int64_t bytes() const {
    return chunks * x_bytes() + stages * kStageBytes + kVectorFloats * 4 + 2 * (chunks + stages + 1) * 8;
  }

  // A task's vectors are loaded after this chunk of its weights. When the chunk's stage is free, the slowest warps are
  // in this task as well, so no warp still reads the vectors of the task before; the rest of the first layer hides the
  // latency of the load.
  constexpr int32_t vectors_after() const { return stages < chunks ? stages : chunks - 1; }
};

// Candidates and requests are counted in 32 bits, including a grid's tiles past the last candidate.
constexpr int64_t kMostRows = 1 << 30;

// The schedule for `candidates` candidates (at most kMostRows) whose x has `columns` columns, in at most `shared_bytes`
// of shared memory. It has no stages if x does not fit.
constexpr TowerSchedule tower_schedule(int64_t tasks, int64_t in_features, int64_t columns, int64_t candidates,
                                       int32_t groups, int64_t shared_bytes) {
  TowerSchedule schedule{};
  const int64_t user_columns = in_features - columns;
  const int64_t first_chunk = user_columns / kChunkInputs;
  const int64_t chunks = TensorPanels{in_features, tower_width(0)}.chunks() - first_chunk;
  if (columns < 1 || chunks > kMostChunks) return schedule;
  schedule.groups = groups;
  const int64_t cluster_rows = kTowerCluster * schedule.rows();
  schedule.tiles = static_cast<int32_t>((candidates + cluster_rows - 1) / cluster_rows * kTowerCluster);
  schedule.tasks = static_cast<int32_t>(tasks);
  schedule.first_chunk = static_cast<int32_t>(first_chunk);
  schedule.chunks = static_cast<int32_t>(chunks);
  schedule.first_column = static_cast<int32_t>(first_chunk * kChunkInputs - user_columns);
  for (schedule.stages = kMostStages; schedule.bytes() > shared_bytes; --schedule.stages) {
  }
  if (schedule.stages < kLeastStages) schedule.stages = 0;
  return schedule;
}

// One step of the ring: chunk `chunk` of the task's first layer, or (chunk == chunks) its second layer.
struct RingStep {
  int32_t tile;
  int32_t task;
  int32_t chunk;
  RingPlace place;
};

// Visits the steps of a block's ring in order.
template <class Visit>
constexpr void for_each_ring_step(const TowerSchedule& schedule, int32_t block, int32_t blocks, Visit visit) {
  RingPlace place;
  for (int32_t tile = block; tile < schedule.tiles; tile += blocks) {
    for (int32_t task = 0; task < schedule.tasks; ++task) {
      for (int32_t chunk = 0; chunk <= schedule.chunks; ++chunk) {
        visit(RingStep{tile, task, chunk, place});
        place.advance(schedule.stages);
      }
    }
  }
}

}  // namespace resflow::cuda
