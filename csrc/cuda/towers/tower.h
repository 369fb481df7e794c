// The tower network in one launch, for any plan: a block computes all layers of all tasks for kRows candidates and
// writes their logits, probabilities and scores. x is read once; weights stream from the L2 cache through a ring in
// shared memory (weight_ring.h); hidden outputs never leave the block.
//
// A tile too large for shared memory (tens of thousands of inputs, very wide layers) keeps its operands and hidden
// outputs in a part of the workspace instead (kShared = false): slower, with the same results.
#pragma once

#include "cuda/towers/call.h"
#include "cuda/towers/layer.h"

namespace resflow::cuda {

struct TowerParams {
  TowerCall call;
  TowerShape shape;
  char* tile_memory;  // [blocks][tile_bytes], unused if tiles are in shared memory
};

// Returns the chunks of all weights in the order of use.
class WeightOrder {
 public:
  RESFLOW_DEVICE WeightOrder(const TowerParams& params, const float* weights)
      : params_(params), weights_(weights), layer_(first_layer()) {
    enter_panel();
  }

  RESFLOW_DEVICE Chunk operator()() {
    const Plan& plan = params_.call.plan;
    if (task_ == plan.tasks) return {weights_, 0, 0};
    const LayerLayout& layer = plan.layer[layer_];
    const Chunk chunk = chunk_of(layer, weights_ + task_ * plan.task_floats, panel_, word_, end_word_);
    word_ += kChunkWords;
    if (word_ < end_word_) return chunk;
    if (++panel_ == panels_of(layer)) {
      panel_ = 0;
      if (++layer_ == plan.layers) {
        ++task_;
        layer_ = first_layer();
        if (layer_ == plan.layers) task_ = plan.tasks;
      }
    }
    if (task_ < plan.tasks) enter_panel();
    return chunk;
  }

 private:
  // A first layer that multiplies no candidate inputs (catalog form, or all inputs are the user's) has no chunks.
  RESFLOW_DEVICE int32_t first_layer() const { return params_.shape.first.words > 0 ? 0 : 1; }
  RESFLOW_DEVICE void enter_panel() {
    const FirstLayer& first = params_.shape.first;
    if (layer_ >= params_.call.plan.layers) {
      task_ = params_.call.plan.tasks;
      return;
    }
    word_ = layer_ == 0 ? first.first_word : 0;
    end_word_ = layer_ == 0 ? first.first_word + first.words : params_.call.plan.layer[layer_].words;
  }

  const TowerParams& params_;
  const float* weights_;
  int32_t task_ = 0;
  int32_t layer_;
  int64_t panel_ = 0;
  int64_t word_ = 0, end_word_ = 0;
};

template <Precision kPrecision, int kRows, bool kShared>
class TowerTile {
 public:
  RESFLOW_DEVICE TowerTile(const TowerParams& params, char* shared)
      : params_(params),
        plan_(params.call.plan),
        weights_(reinterpret_cast<const float*>(static_cast<const char*>(params.call.packed) + kHeaderBytes)),
        rows_(reinterpret_cast<RowInfo*>(shared + params.shape.row_info)),
        logits_(reinterpret_cast<float*>(shared + params.shape.logits)),
        memory_(kShared ? shared + params.shape.shared_fixed
                        : params.tile_memory + block_index() * params.shape.tile_bytes),
        ring_(shared + params.shape.ring) {}

  RESFLOW_DEVICE void run(int64_t tile) {
    const Candidates& candidates = params_.call.candidates;
    const int64_t first = tile * kRows, left = candidates.count - first;
    const RowRange range{first, static_cast<int>(left < kRows ? left : kRows)};
    if (thread_index() < kRows) {
      rows_[thread_index()] = thread_index() < range.count ? row_info(params_.call, first + thread_index()) : RowInfo{};
    }
    const FirstLayer& first_layer = params_.shape.first;
    if (first_layer.words > 0) {
      const OperandWriter<kShared> x{reinterpret_cast<uint32_t*>(memory_ + params_.shape.x), params_.shape.x_stride};
      load_input<kPrecision, kRows>(candidates.x, range, first_layer, x);
    }
    WeightOrder order(params_, weights_);
    ring_.begin(order);
    fetch_ahead(tile + block_count());
    sync_block();
    for (int32_t task = 0; task < plan_.tasks; ++task) {
      for (int32_t layer = 0; layer < plan_.layers; ++layer) run_layer(task, layer, order);
      run_head(task);
    }
    sync_block();
    if (thread_index() < range.count) {
      write_outputs(params_.call, first + thread_index(), rows_[thread_index()],
                    logits_ + thread_index() * plan_.tasks);
    }
    sync_block();
  }

 private:
  // Prefetches the rows of the block's next tile while this one is multiplied. Pooled features are not prefetched:
  // finding their rows costs too much.
  RESFLOW_DEVICE void fetch_ahead(int64_t tile) const {
    constexpr int kSectorBytes = 32, kThreadsPerRow = kTowerThreads / kRows;
    const Candidates& candidates = params_.call.candidates;
    const int64_t at = tile * kRows + thread_index() / kThreadsPerRow;
    if (at >= candidates.count || candidates.x.pooled()) return;
    const Rows& rows = candidates.ids ? candidates.table.rows : candidates.x.rows;
    const int64_t row = candidates.ids ? load_constant(candidates.ids + at) : at;
    if (candidates.ids && (row < 0 || row >= candidates.table.items)) return;
    const int64_t columns = candidates.ids ? plan_.tasks * plan_.first_padded() : params_.shape.first.columns;
    const char* const from = row_at(rows, row);
    for (int64_t byte = thread_index() % kThreadsPerRow * kSectorBytes; byte < columns * bytes_of(rows.element);
         byte += kThreadsPerRow * kSectorBytes) {
      prefetch_sector(from + byte);
    }
  }

  RESFLOW_DEVICE void run_layer(int32_t task, int32_t at, WeightOrder& order) {
    const LayerLayout& layer = plan_.layer[at];
    const float* const weights = weights_ + task * plan_.task_floats;
    const Operand<kShared> operand =
        at == 0 ? operand_at(params_.shape.x, params_.shape.x_stride)
                : operand_at(params_.shape.operands[at % 2], params_.shape.operand_strides[at % 2]);
    const int64_t words = at == 0 ? params_.shape.first.words : layer.words;
    for (int64_t panel = 0; panel < panels_of(layer); ++panel) {
      const int64_t column = panel * kPanelWidth, left = layer.padded - column;
      const int width = static_cast<int>(left < kPanelWidth ? left : kPanelWidth);
      PanelSums<kRows> sums{};
      const float* const biases = weights + layer.bias + column;
      if (at == 0) {
        FirstSums{params_.call, rows_, biases, task * layer.padded + column}.template begin<kRows>(sums, width);
      } else {
        begin_sums<kRows>(sums, width, [&](int, int64_t own) { return load_pair(biases + own); });
      }
      multiply_panel<kPrecision, kRows>(sums, operand, words, width, ring_, order);
      finish_sums<kRows>(plan_.affine, layer, weights, panel, width, sums);
      keep(task, at, column, width, sums);
    }
    sync_block();
  }

  // Adds the parent's outputs; stores the layer's outputs for the next layer and for the tasks that add them.
  RESFLOW_DEVICE void keep(int32_t task, int32_t at, int64_t first_column, int width, PanelSums<kRows>& sums) {
    const LayerLayout& layer = plan_.layer[at];
    const bool last = at + 1 == plan_.layers;
    const int32_t parent = plan_.feature_residual ? plan_.parents[task] : -1;
    float* const own = hidden(plan_.slot[task], at);
    const float* const added = parent < 0 ? nullptr : hidden(plan_.slot[parent], at);
    const int next = (at + 1) % 2;
    const OperandWriter<kShared> to{reinterpret_cast<uint32_t*>(memory_ + params_.shape.operands[next]),
                                    params_.shape.operand_strides[next]};
    const int64_t stride = hidden_stride(layer.padded);
    for_each_pair<kRows>(sums, width, [&](int row, int at_column, float low, float high) {
      const int64_t column = first_column + at_column;
      Pair value{low, high};
      if (added) {
        const Pair residual = load(added + row * stride + column);
        value = {low + residual.low, high + residual.high};
      }
      if (last || params_.shape.keeps_all_layers) store(own + row * stride + column, value);
      if (!last) put_pair<kPrecision>(to, row, column, within(value, column, layer.width));
    });
  }

  RESFLOW_DEVICE void run_head(int32_t task) {
    const int32_t last = plan_.layers - 1;
    const int64_t stride = hidden_stride(plan_.layer[last].padded);
    const float* const weights = weights_ + task * plan_.task_floats;
    for (int row = thread_index() / 32; row < kRows; row += kTowerWarps) {
      const float* const hidden_row = hidden(plan_.slot[task], last) + row * stride;
      const float own = head_logit(plan_, weights, [&](int64_t column) {
        if constexpr (kShared) return hidden_row[column];
        return load_global(hidden_row + column);
      });
      float* const logits = logits_ + row * plan_.tasks;
      const int32_t parent = plan_.parents[task];
      const float joined = join_logit(plan_, task, own, parent < 0 ? 0.0f : logits[parent]);
      sync_warp();
      if (thread_index() % 32 == 0) logits[task] = joined;
      sync_warp();
    }
    sync_block();
  }

  RESFLOW_DEVICE Operand<kShared> operand_at(int64_t offset, int64_t stride) const {
    return {reinterpret_cast<const uint32_t*>(memory_ + offset), stride};
  }
  RESFLOW_DEVICE float* hidden(int32_t slot, int32_t layer) const {
    return reinterpret_cast<float*>(memory_ + params_.shape.hidden) + slot * params_.shape.slot_floats +
           params_.shape.layer_offset[layer];
  }
  RESFLOW_DEVICE Pair load(const float* from) const {
    if constexpr (kShared) return *reinterpret_cast<const Pair*>(from);
    return load_global(reinterpret_cast<const Pair*>(from));
  }
  RESFLOW_DEVICE void store(float* to, const Pair& value) const {
    if constexpr (kShared) {
      *reinterpret_cast<Pair*>(to) = value;
    } else {
      store_global(reinterpret_cast<Pair*>(to), value);
    }
  }

  const TowerParams& params_;
  const Plan& plan_;
  const float* const weights_;
  RowInfo* const rows_;
  float* const logits_;
  char* const memory_;
  WeightRing ring_;
};

template <Precision kPrecision, int kRows, bool kShared>
struct TowerKernel {
  using Params = TowerParams;
  static constexpr int kThreads = kTowerThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "tower";

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    const int64_t tiles = (params.call.candidates.count + kRows - 1) / kRows;
    TowerTile<kPrecision, kRows, kShared> tile(params, shared);
    for (int64_t at = block_index(); at < tiles; at += block_count()) tile.run(at);
  }
};

}  // namespace resflow::cuda
