// What the Hopper kernel of tower_sm90.h loads, where to and in which order: plain C++, so that tests can follow it.
//
// Blocks run in clusters of two, which read the weights together: each loads half of what both need, into both. A block
// takes every block_count()-th tile, of 64 rows for each warpgroup that computes; both of a cluster take as many, at
// the end a tile past the last row. Its x lies whole in shared memory, in chunks of 64 inputs; the weights stream
// through a ring of stages, for each tile and task the chunks of its first layer and then its second layer, which is
// one stage. Layers are 128 and 64 wide.
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
constexpr int kMostChunks = 12;                        // of x: 192 KiB
constexpr int kLeastStages = 2;
constexpr int kMostStages = 6;

// A task's vectors in shared memory: of the first layer slope, scale and shift, of the second those and its bias before
// them, then the head; in floats. The first layer's biases are what its sums begin with, long before.
constexpr int64_t kBiasAt = 3 * tower_width(0);  // of the second layer
constexpr int64_t slope_at(int layer) { return layer == 0 ? 0 : kBiasAt + tower_width(1); }
constexpr int64_t scale_at(int layer) { return slope_at(layer) + tower_width(layer); }
constexpr int64_t shift_at(int layer) { return scale_at(layer) + tower_width(layer); }
constexpr int64_t kHeadAt = shift_at(1) + tower_width(1);
constexpr int64_t kHeadFloats = tower_width(1) + 4;  // weight and bias, in whole copies of 16 bytes
constexpr int64_t kVectorFloats = kHeadAt + kHeadFloats;

// Which stage a step of the ring uses, and the parity of its round: both sides walk along it.
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
  int32_t first_chunk;   // of the weights: those before it are the user's alone
  int32_t chunks;        // of x
  int32_t first_column;  // of x in its first chunk, negative where the chunk begins with the user's last inputs
  int32_t groups;
  int32_t stages;

  constexpr int32_t rows() const { return groups * kGroupRows; }                               // of a tile
  constexpr int32_t x_bytes() const { return rows() * static_cast<int32_t>(kChunkRowBytes); }  // of a chunk of x

  // Of shared memory: x, the ring, the vectors, two barriers for each of those (TowerMemory).
  constexpr int64_t bytes() const {
    return chunks * x_bytes() + stages * kStageBytes + kVectorFloats * 4 + 2 * (chunks + stages + 1) * 8;
  }

  // A task's vectors are loaded after this chunk of its weights. The chunk's stage being free, the warps that lag are
  // in this task as well, so none still reads the vectors of the task before; what remains of the first layer hides
  // their latency.
  constexpr int32_t vectors_after() const { return stages < chunks ? stages : chunks - 1; }
};

// Candidates and requests are counted in 32 bits, as far as a grid's tiles past the last.
constexpr int64_t kMostRows = 1 << 30;

// The schedule of candidates (at most kMostRows) whose x has `columns` columns, in at most `shared_bytes`. No stages: x
// does not fit.
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

// What a block loads into its ring, in order.
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
