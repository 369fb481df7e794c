// The tower network of a small batch, in one launch spread over many SMs: a block does one job and exits.
//
//   jobs, in this order:   the users' projections    (16 users, task, panel)
//                          each layer                (16 candidates, task, panel)
//                          heads, fusion, outputs    (16 candidates)
//
// A job reads results of earlier jobs from the workspace, and waits for them by counters. Blocks draw their jobs by
// ticket, so the jobs waited for have begun, whatever order the GPU starts blocks in. The layers of all tasks run in
// parallel because a job writes f_k^l without the residual: the reader of a layer adds the ancestors' outputs (root
// first, the tower kernel's order, so results are bitwise the same).
#pragma once

#include "cuda/towers/dispatch.h"
#include "cuda/towers/layer.h"

namespace resflow::cuda {

struct SplitParams {
  TowerCall call;
  FirstLayer first;        // of candidates' rows
  FirstLayer user_first;   // of users'
  int64_t operand_stride;  // of the widest operand, in words
  int64_t tiles, user_tiles;

  // The workspace. Counters are zero when the kernel starts.
  int32_t* counters;  // [0]: jobs drawn, [1]: projections done, then [layers][tiles]: panels done
  float* accum_init;  // [requests][tasks * first_padded()]
  float* hidden;      // layer after layer, [tiles * kSplitRows][tasks][padded width]

  constexpr int64_t user_jobs() const { return user_tiles * call.plan.tasks * panels_of(call.plan.layer[0]); }
  constexpr int64_t layer_jobs(int32_t layer) const {
    return tiles * call.plan.tasks * panels_of(call.plan.layer[layer]);
  }
  constexpr int64_t jobs() const {
    int64_t sum = user_jobs() + tiles;
    for (int32_t l = 0; l < call.plan.layers; ++l) sum += layer_jobs(l);
    return sum;
  }
  constexpr int64_t counter_count() const { return 2 + call.plan.layers * tiles; }
  constexpr int64_t hidden_offset(int32_t layer) const {
    int64_t floats = 0;
    for (int32_t l = 0; l < layer; ++l) floats += tiles * kSplitRows * call.plan.tasks * call.plan.layer[l].padded;
    return floats;
  }

  // Shared memory holds the ring, RowInfo [rows], logits [rows][tasks] and the operand.
  constexpr int64_t logits_at() const { return kRingBytes + kSplitRows * sizeof(RowInfo); }
  constexpr int64_t operand_at() const { return round_up(logits_at() + 4 * kSplitRows * call.plan.tasks, 16); }
  constexpr int64_t shared_bytes() const { return operand_at() + 4 * kSplitRows * operand_stride; }
};

enum class JobKind { project, layer, head };

struct SplitJob {
  JobKind kind;
  int32_t layer;
  int64_t tile;
  int32_t task;
  int64_t panel;
};

// The job at an index in the order.
RESFLOW_BOTH constexpr SplitJob split_job(const SplitParams& params, int64_t at) {
  const Plan& plan = params.call.plan;
  const auto of_layer = [&](JobKind kind, int32_t layer) {
    const int64_t panels = panels_of(plan.layer[layer]);
    return SplitJob{kind, layer, at / (panels * plan.tasks), static_cast<int32_t>(at / panels % plan.tasks),
                    at % panels};
  };
  if (at < params.user_jobs()) return of_layer(JobKind::project, 0);
  at -= params.user_jobs();
  for (int32_t l = 0; l < plan.layers; ++l) {
    if (at < params.layer_jobs(l)) return of_layer(JobKind::layer, l);
    at -= params.layer_jobs(l);
  }
  return {JobKind::head, plan.layers, at, 0, 0};
}

template <Precision kPrecision>
class SplitBlock {
 public:
  RESFLOW_DEVICE SplitBlock(const SplitParams& params, char* shared)
      : params_(params),
        plan_(params.call.plan),
        weights_(reinterpret_cast<const float*>(static_cast<const char*>(params.call.packed) + kHeaderBytes)),
        rows_(reinterpret_cast<RowInfo*>(shared + kRingBytes)),
        logits_(reinterpret_cast<float*>(shared + params.logits_at())),
        operand_(reinterpret_cast<uint32_t*>(shared + params.operand_at())),
        ring_(shared) {}

  RESFLOW_DEVICE void run(const SplitJob& job) {
    if (job.kind == JobKind::head) return run_heads(job.tile);
    const bool projects = job.kind == JobKind::project;
    const LayerLayout& layer = plan_.layer[job.layer];
    const float* const weights = weights_ + job.task * plan_.task_floats;
    const FirstLayer& first = projects ? params_.user_first : params_.first;
    const int64_t first_word = job.layer == 0 ? first.first_word : 0;
    const int64_t words = job.layer == 0 ? first.words : layer.words;
    const int64_t column = job.panel * kPanelWidth, left = layer.padded - column;
    const int width = static_cast<int>(left < kPanelWidth ? left : kPanelWidth);

    int64_t word = first_word;
    const auto next = [&]() -> Chunk {
      if (word >= first_word + words) return {weights, 0, 0};
      const Chunk chunk = chunk_of(layer, weights, job.panel, word, first_word + words);
      word += kChunkWords;
      return chunk;
    };
    const RowRange range =
        rows_of(job.tile, projects ? params_.call.candidates.requests : params_.call.candidates.count);
    if (job.layer == 0) {
      if (words > 0) {
        const Source& source = projects ? params_.call.candidates.user : params_.call.candidates.x;
        load_input<kPrecision, kSplitRows>(source, range, first, OperandWriter<true>{operand_, params_.operand_stride});
      }
      find_rows(range, projects);
    }
    ring_.begin(next);
    if (!projects && (job.layer > 0 || params_.user_tiles > 0)) wait_for_inputs(job);
    if (job.layer > 0) load_hidden(job, range);
    sync_block();

    PanelSums<kSplitRows> sums{};
    const float* const biases = weights + layer.bias + column;
    if (job.layer == 0 && !projects) {
      FirstSums{params_.call, rows_, biases, job.task * layer.padded + column}.begin<kSplitRows>(sums, width);
    } else {
      begin_sums<kSplitRows>(sums, width, [&](int, int64_t at) { return load_pair(biases + at); });
    }
    multiply_panel<kPrecision, kSplitRows>(sums, Operand<true>{operand_, params_.operand_stride}, words, width, ring_,
                                           next);
    if (!projects) finish_sums<kSplitRows>(plan_.affine, layer, weights, job.panel, width, sums);
    leave(job, range, column, width, sums);
  }

 private:
  RESFLOW_DEVICE RowRange rows_of(int64_t tile, int64_t count) const {
    const int64_t left = count - tile * kSplitRows;
    return {tile * kSplitRows, static_cast<int>(left < kSplitRows ? left : kSplitRows)};
  }

  RESFLOW_DEVICE void find_rows(const RowRange& range, bool users) {
    if (thread_index() >= kSplitRows) return;
    const bool exists = thread_index() < range.count && !users;
    rows_[thread_index()] = exists ? row_info(params_.call, range.first + thread_index()) : RowInfo{};
  }

  // Thread 0 waits for the inputs of a job; the barrier orders the other threads' reads after it.
  RESFLOW_DEVICE void wait_for_inputs(const SplitJob& job) {
    if (thread_index() == 0) {
      if (job.layer == 0) {
        wait_for_count(params_.counters + 1, static_cast<int32_t>(params_.user_jobs()));
      } else {
        const int64_t panels = panels_of(plan_.layer[job.layer - 1]);
        wait_for_count(done(job.layer - 1, job.tile), static_cast<int32_t>(plan_.tasks * panels));
      }
    }
    sync_block();
  }

  RESFLOW_DEVICE int32_t* done(int32_t layer, int64_t tile) const {
    return params_.counters + 2 + layer * params_.tiles + tile;
  }

  RESFLOW_DEVICE float* hidden_at(int32_t layer, int64_t candidate, int32_t task) const {
    return params_.hidden + params_.hidden_offset(layer) + (candidate * plan_.tasks + task) * plan_.layer[layer].padded;
  }

  // o_k^l of two columns: the sum of f over the ancestors, root first.
  RESFLOW_DEVICE Pair hidden_pair(int32_t layer, int64_t candidate, int32_t task, int64_t column) const {
    int depth = 0;
    if (plan_.feature_residual) {
      for (int32_t at = task; plan_.parents[at] >= 0; at = plan_.parents[at]) ++depth;
    }
    Pair sum{};
    for (int up = depth; up >= 0; --up) {
      int32_t at = task;
      for (int step = 0; step < up; ++step) at = plan_.parents[at];
      const Pair own = load_shared_by_blocks(reinterpret_cast<const Pair*>(hidden_at(layer, candidate, at) + column));
      sum = up == depth ? own : Pair{own.low + sum.low, own.high + sum.high};
    }
    return sum;
  }

  // Loads the outputs of the layer before as this job's operand; rows beyond the batch are zeros.
  RESFLOW_DEVICE void load_hidden(const SplitJob& job, const RowRange& range) {
    const LayerLayout& before = plan_.layer[job.layer - 1];
    const OperandWriter<true> to{operand_, params_.operand_stride};
    for (int row = thread_index() / 32; row < kSplitRows; row += kTowerWarps) {
      for (int64_t column = thread_index() % 32 * 2; column < before.padded; column += 64) {
        const Pair value = row < range.count ? hidden_pair(job.layer - 1, range.first + row, job.task, column) : Pair{};
        put_pair<kPrecision>(to, row, column, within(value, column, before.width));
      }
    }
  }

  RESFLOW_DEVICE void leave(const SplitJob& job, const RowRange& range, int64_t column, int width,
                            PanelSums<kSplitRows>& sums) {
    const bool projects = job.kind == JobKind::project;
    const int64_t padded = plan_.layer[job.layer].padded;
    for_each_pair<kSplitRows>(sums, width, [&](int row, int at, float low, float high) {
      if (row >= range.count) return;
      float* const to = projects ? params_.accum_init + ((range.first + row) * plan_.tasks + job.task) * padded
                                 : hidden_at(job.layer, range.first + row, job.task);
      store_global(reinterpret_cast<Pair*>(to + column + at), Pair{low, high});
    });
    sync_block();
    if (thread_index() == 0) {
      fence_device();
      atomic_add(projects ? params_.counters + 1 : done(job.layer, job.tile), 1);
    }
  }

  RESFLOW_DEVICE void run_heads(int64_t tile) {
    const int32_t last = plan_.layers - 1;
    const RowRange range = rows_of(tile, params_.call.candidates.count);
    find_rows(range, false);
    wait_for_inputs({JobKind::head, plan_.layers, tile, 0, 0});
    for (int row = thread_index() / 32; row < range.count; row += kTowerWarps) {
      float* const logits = logits_ + row * plan_.tasks;
      for (int32_t task = 0; task < plan_.tasks; ++task) {
        const float own = head_logit(plan_, weights_ + task * plan_.task_floats, [&](int64_t column) {
          const Pair pair = hidden_pair(last, range.first + row, task, column & ~int64_t(1));
          return column % 2 == 0 ? pair.low : pair.high;
        });
        const int32_t parent = plan_.parents[task];
        const float joined = join_logit(plan_, task, own, parent < 0 ? 0.0f : logits[parent]);
        sync_warp();
        if (thread_index() % 32 == 0) logits[task] = joined;
        sync_warp();
      }
    }
    sync_block();
    if (thread_index() < range.count) {
      write_outputs(params_.call, range.first + thread_index(), rows_[thread_index()],
                    logits_ + thread_index() * plan_.tasks);
    }
  }

  const SplitParams& params_;
  const Plan& plan_;
  const float* const weights_;
  RowInfo* const rows_;
  float* const logits_;
  uint32_t* const operand_;
  WeightRing ring_;
};

template <Precision kPrecision>
struct SplitKernel {
  using Params = SplitParams;
  static constexpr int kThreads = kTowerThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "tower_split";

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    auto* const ticket = reinterpret_cast<int64_t*>(shared);
    if (thread_index() == 0) *ticket = atomic_add(params.counters, 1);
    sync_block();
    const int64_t at = *ticket;
    sync_block();
    SplitBlock<kPrecision>(params, shared).run(split_job(params, at));
  }
};

}  // namespace resflow::cuda
