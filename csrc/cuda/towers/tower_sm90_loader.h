// The Hopper kernel's shared memory, and the two threads of a block that load it.
#pragma once

#include "cuda/device/target.h"
#include "cuda/towers/call.h"
#include "cuda/towers/tower_sm90_schedule.h"

namespace resflow::cuda {

struct TowerSm90Params {
  TensorMap x;  // boxes of a tile's rows and 64 columns, swizzled by 128 bytes
  TowerCall call;
  TowerSchedule schedule;
};

constexpr int kGroupThreads = 128;
constexpr int kGroupWarps = kGroupThreads / 32;

RESFLOW_DEVICE int32_t own_block() { return static_cast<int32_t>(block_index()); }
RESFLOW_DEVICE int32_t blocks() { return static_cast<int32_t>(block_count()); }

// The layout of a block's shared memory. Only its address is kept in registers.
struct TowerMemory {
  const TowerSchedule& schedule;
  char* shared;

  RESFLOW_DEVICE char* x(int chunk) const { return shared + chunk * schedule.x_bytes(); }
  RESFLOW_DEVICE char* stage(int stage) const { return x(schedule.chunks) + stage * static_cast<int>(kStageBytes); }
  RESFLOW_DEVICE float* vectors() const { return reinterpret_cast<float*>(stage(schedule.stages)); }

  RESFLOW_DEVICE uint64_t* stage_full(int stage) const { return barriers() + stage; }
  RESFLOW_DEVICE uint64_t* stage_empty(int stage) const { return stage_full(schedule.stages + stage); }
  RESFLOW_DEVICE uint64_t* x_full(int chunk) const { return stage_empty(schedule.stages + chunk); }
  RESFLOW_DEVICE uint64_t* x_empty(int chunk) const { return x_full(schedule.chunks + chunk); }
  RESFLOW_DEVICE uint64_t* vectors_full() const { return x_empty(schedule.chunks); }
  RESFLOW_DEVICE uint64_t* vectors_empty() const { return vectors_full() + 1; }

  // Called by one thread. A loading thread arrives at "full" barriers, each computing warp at "empty" barriers.
  RESFLOW_DEVICE void begin() const {
    const int warps = schedule.groups * kGroupWarps;
    // A stage is filled and emptied by both blocks of the cluster.
    for (int i = 0; i < schedule.stages; ++i) begin(stage_full(i), stage_empty(i), kTowerCluster * warps);
    for (int i = 0; i < schedule.chunks; ++i) begin(x_full(i), x_empty(i), warps);
    begin(vectors_full(), vectors_empty(), warps);
    barrier_init_done();
  }

 private:
  RESFLOW_DEVICE uint64_t* barriers() const { return reinterpret_cast<uint64_t*>(vectors() + kVectorFloats); }
  static RESFLOW_DEVICE void begin(uint64_t* full, uint64_t* empty, int warps) {
    barrier_init(full, 1);
    barrier_init(empty, warps);
  }
};

// The work of the loading warpgroup.
template <bool kSlopes>
struct TowerLoader {
  const TowerSm90Params& params;
  const TowerMemory& memory;

  // Called by one thread.
  RESFLOW_DEVICE void load_weights() const {
    const TowerSchedule& schedule = params.schedule;
    constexpr int kShare = kStageBytes / kTowerCluster;
    uint32_t parity = 0;
    for_each_ring_step(schedule, own_block(), blocks(), [&](const RingStep& step) {
      const int stage = step.place.stage;
      barrier_wait(memory.stage_empty(stage), step.place.parity ^ 1);
      barrier_expect(memory.stage_full(stage), kStageBytes);
      const int own = cluster_rank() * kShare;
      copy_bulk_to_cluster(memory.stage(stage) + own, panels_of(step) + own, kShare, memory.stage_full(stage),
                           (1 << kTowerCluster) - 1);
      if (step.chunk == schedule.vectors_after()) {
        load_vectors(step.task, parity);
        parity ^= 1;
      }
    });
  }

  // Called by another thread.
  RESFLOW_DEVICE void load_x() const {
    const TowerSchedule& schedule = params.schedule;
    prefetch_map(&params.x);
    uint32_t parity = 0;
    for (int32_t tile = own_block(); tile < schedule.tiles; tile += blocks()) {
      for (int chunk = 0; chunk < schedule.chunks; ++chunk) {
        uint64_t* const full = memory.x_full(chunk);
        barrier_wait(memory.x_empty(chunk), parity ^ 1);
        barrier_expect(full, schedule.x_bytes());
        copy_box(memory.x(chunk), &params.x, schedule.first_column + chunk * static_cast<int32_t>(kChunkInputs),
                 tile * schedule.rows(), full);
      }
      parity ^= 1;
    }
  }

 private:
  RESFLOW_DEVICE const char* panels_of(const RingStep& step) const {
    const Plan& plan = params.call.plan;
    const char* const task =
        static_cast<const char*>(params.call.packed) + plan.tensor_start + step.task * plan.tensor_bytes;
    if (step.chunk == params.schedule.chunks) return task + plan.layer[1].tensor_panels;
    return task + plan.layer[0].tensor_panels + (params.schedule.first_chunk + step.chunk) * kStageBytes;
  }

  // Slopes, scales and shifts of a layer are contiguous in the packed weights. Those that the plan lacks keep the
  // defaults set at the start of the kernel.
  RESFLOW_DEVICE void load_vectors(int32_t task, uint32_t parity) const {
    const Plan& plan = params.call.plan;
    const auto* const packed = static_cast<const char*>(params.call.packed) + kHeaderBytes;
    const auto* const weights = reinterpret_cast<const float*>(packed) + task * plan.task_floats;
    barrier_wait(memory.vectors_empty(), parity ^ 1);
    const int kinds = (kSlopes ? 1 : 0) + (plan.affine ? 2 : 0);
    const int64_t floats = kinds * (tower_width(0) + tower_width(1)) + tower_width(1) + kHeadFloats;
    barrier_expect(memory.vectors_full(), static_cast<uint32_t>(floats * sizeof(float)));
    for (int layer = 0; layer < 2 && kinds > 0; ++layer) {
      const float* const from = weights + (kSlopes ? plan.layer[layer].slope : plan.layer[layer].scale);
      load_floats(kSlopes ? slope_at(layer) : scale_at(layer), from, kinds * tower_width(layer));
    }
    load_floats(kBiasAt, weights + plan.layer[1].bias, tower_width(1));
    load_floats(kHeadAt, weights + plan.head_weight, kHeadFloats);
  }
  RESFLOW_DEVICE void load_floats(int64_t to, const float* from, int64_t count) const {
    copy_bulk(memory.vectors() + to, from, static_cast<uint32_t>(count * sizeof(float)), memory.vectors_full());
  }
};

}  // namespace resflow::cuda
