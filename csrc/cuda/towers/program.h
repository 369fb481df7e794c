// A tile program in one launch: a block runs all steps for kRows candidates, whose values stay in its memory from the
// input row to the outputs. Linear steps are multiplied like the layers of towers (panel.h), with the weights of the
// next ones on their way through the ring; the others are computed candidate by candidate (program_steps.h).
//
// A tile too large for shared memory keeps its frames in a part of the workspace instead (kShared = false): slower,
// with the same results.
#pragma once

#include "cuda/towers/call.h"
#include "cuda/towers/dispatch.h"
#include "cuda/towers/layer.h"
#include "cuda/towers/program_steps.h"

namespace resflow::cuda {

struct ProgramParams {
  TowerCall call;
  ProgramRecords program;
  ProgramShape shape;
  char* tile_memory;       // [blocks][tile_bytes], unused if tiles are in shared memory
  const float* user_sums;  // [requests][user_stride], with which linear steps begin; null: there are none
  int64_t user_stride;
  float* outputs;  // [count][output_columns] of a program that is not scored
};

// Returns the chunks of all linear steps' weights in the order of use.
class ProgramWeightOrder {
 public:
  RESFLOW_DEVICE ProgramWeightOrder(const ProgramRecords& program, const float* weights)
      : program_(program), weights_(weights) {
    enter(program.first_linear);
  }

  RESFLOW_DEVICE Chunk operator()() {
    if (step_ == program_.step_count) return {weights_, 0, 0};
    const Chunk chunk = chunk_of(layer_, weights_, panel_, word_, end_word_);
    word_ += kChunkWords;
    if (word_ < end_word_) return chunk;
    word_ = first_word_;
    if (++panel_ == panels_of(layer_)) enter(next_);
    return chunk;
  }

 private:
  RESFLOW_DEVICE void enter(int32_t step) {
    step_ = step;
    panel_ = 0;
    if (step == program_.step_count) return;
    const StepRecord record = load_record(program_.steps + step);
    layer_ = record.layer;
    next_ = record.next_linear;
    word_ = first_word_ = record.first_word;
    end_word_ = record.end_word;
  }

  const ProgramRecords& program_;
  const float* const weights_;
  int32_t step_ = 0, next_ = 0;
  int64_t panel_ = 0, word_ = 0, first_word_ = 0, end_word_ = 0;
  LayerLayout layer_{};
};

template <Precision kPrecision, int kRows, bool kShared>
class ProgramTile {
 public:
  RESFLOW_DEVICE ProgramTile(const ProgramParams& params, char* shared)
      : params_(params),
        plan_(params.call.plan),
        weights_(reinterpret_cast<const float*>(static_cast<const char*>(params.call.packed) + kHeaderBytes)),
        rows_(reinterpret_cast<RowInfo*>(shared + params.shape.row_info)),
        logits_(reinterpret_cast<float*>(shared + params.shape.logits)),
        memory_(kShared ? shared + params.shape.shared_fixed
                        : params.tile_memory + block_index() * params.shape.tile_bytes),
        ring_(shared + params.shape.ring) {}

  RESFLOW_DEVICE void run(int64_t tile) {
    const int64_t first = tile * kRows, left = params_.call.candidates.count - first;
    const RowRange range{first, static_cast<int>(left < kRows ? left : kRows)};
    if (thread_index() < kRows) {
      rows_[thread_index()] = thread_index() < range.count ? row_info(params_.call, first + thread_index()) : RowInfo{};
    }
    sync_block();
    ProgramWeightOrder order(params_.program, weights_);
    ring_.begin(order);
    for_each_row(kRows, [&](int row) { load_row(range, row); });
    sync_block();
    for (int32_t s = 0; s < params_.program.step_count; ++s) {
      const StepRecord step = load_record(params_.program.steps + s);
      if (step.kind == StepKind::linear) {
        run_linear(step, order);
      } else {
        for_each_row(kRows, [&](int row) {
          CandidateStep<kShared>(step, params_.program.segments, weights_, frame(row)).run(staged(row));
        });
      }
      sync_block();
    }
    if (params_.outputs) {
      for_each_row(range.count, [&](int row) { write_columns(first, row); });
    } else if (thread_index() < range.count) {
      write_scores(first + thread_index());
    }
    sync_block();
  }

 private:
  // Calls visit with the rows of this thread's warp.
  template <class Visit>
  RESFLOW_DEVICE void for_each_row(int count, Visit visit) const {
    for (int row = thread_index() / 32; row < count; row += kTowerWarps) visit(row);
  }

  RESFLOW_DEVICE Floats<kShared> frame(int row) const {
    return {reinterpret_cast<float*>(memory_ + params_.shape.frames) + row * params_.shape.frame_stride};
  }
  RESFLOW_DEVICE Floats<kShared> staged(int row) const {
    return {reinterpret_cast<float*>(memory_ + params_.shape.staged) + row * params_.shape.staged_stride};
  }

  // A candidate's input row: its user's columns, then its own; zeros past the batch and outside all requests.
  RESFLOW_DEVICE void load_row(const RowRange& range, int row) const {
    const Candidates& candidates = params_.call.candidates;
    const Floats<kShared> to = frame(row);
    const int64_t users = candidates.user_columns, first = params_.program.first_column;
    const bool exists = row < range.count;
    load_columns(candidates.user, exists && rows_[row].scored ? rows_[row].request : -1, first, users, to);
    load_columns(candidates.x, exists ? range.first + row : -1, first < users ? 0 : first - users,
                 plan_.in_features - users, to.from(users));
  }

  // Columns `first` to `columns` - 1 of a source's row; -1: zeros.
  RESFLOW_DEVICE void load_columns(const Source& source, int64_t row, int64_t first, int64_t columns,
                                   Floats<kShared> to) const {
    if (row < 0) {
      for (int64_t c = first + lane_index(); c < columns; c += 32) to.put(c, 0.0f);
    } else if (source.pooled()) {
      int64_t at = 0;
      for (int64_t f = 0; f < source.features.count; ++f) {
        const Feature feature = load_record(source.features.all + f);
        if (at + feature.width > first) {
          const IdRange ids = ids_of(feature, row);
          for (int64_t c = lane_index(); c < feature.width; c += 32) to.put(at + c, pooled(feature, ids, c));
        }
        at += feature.width;
      }
    } else {
      const char* const from = row_at(source.rows, row);
      for (int64_t c = first + lane_index(); c < columns; c += 32) to.put(c, value_of(from, source.rows.element, c));
    }
  }

  RESFLOW_DEVICE void run_linear(const StepRecord& step, ProgramWeightOrder& order) {
    const LayerLayout& layer = step.layer;
    for_each_row(kRows, [&](int row) { stage_operand(step, row); });
    const Operand<kShared> operand{reinterpret_cast<const uint32_t*>(staged(0).first), params_.shape.staged_stride};
    for (int64_t panel = 0; panel < panels_of(layer); ++panel) {
      const int64_t column = panel * kPanelWidth, left = layer.padded - column;
      const int width = static_cast<int>(left < kPanelWidth ? left : kPanelWidth);
      PanelSums<kRows> sums{};
      begin(step, column, width, sums);
      multiply_panel<kPrecision, kRows>(sums, operand, step.end_word - step.first_word, width, ring_, order);
      finish_sums<kRows>(step.affine, layer, weights_, panel, width, sums);
      combine(step, column, width, sums);
      for_each_pair<kRows>(sums, width, [&](int row, int at, float low, float high) {
        const Floats<kShared> to = frame(row).from(step.place + column + at);
        to.put(0, low);
        to.put(1, high);
      });
    }
  }

  // Sums begin as the biases, or as those of the user's columns.
  RESFLOW_DEVICE void begin(const StepRecord& step, int64_t column, int width, PanelSums<kRows>& sums) const {
    begin_sums<kRows>(sums, width, [&](int row, int64_t at) {
      if (step.user_sums < 0) return load_pair(weights_ + step.layer.bias + column + at);
      if (!rows_[row].scored) return Pair{0.0f, 0.0f};
      const float* const from = params_.user_sums + rows_[row].request * params_.user_stride + step.user_sums;
      return load_pair(from + column + at);
    });
  }

  // Rounds a candidate's inputs, one after another, to an operand, with zeros up to whole products.
  RESFLOW_DEVICE void stage_operand(const StepRecord& step, int row) const {
    const Floats<kShared> from = frame(row);
    const OperandWriter<kShared> to{reinterpret_cast<uint32_t*>(staged(0).first), params_.shape.staged_stride};
    for (int i = 0; i < step.inputs; ++i) {
      const FrameSegment segment = load_record(params_.program.segments + step.first + i);
      for (int64_t c = lane_index(); c < segment.width; c += 32) {
        to.put(row, segment.column + c, rounded<kPrecision>(from[segment.place + c]));
      }
    }
    const int64_t values = round_up(step.end_word - step.first_word, kProductWords) * Numbers<kPrecision>::kPerWord;
    for (int64_t c = step.columns + lane_index(); c < values; c += 32) to.put(row, c, rounded<kPrecision>(0.0f));
  }

  // Multiplies and adds a linear step's factors and addends to a panel of its result.
  RESFLOW_DEVICE void combine(const StepRecord& step, int64_t column, int width, PanelSums<kRows>& sums) const {
    const FrameSegment* next = params_.program.segments + step.first + step.inputs;
    // Calls change(value, the segment's column for the value's) with the values of the step's own columns.
    const auto for_each_value = [&](const FrameSegment& segment, auto change) {
      for_each_pair<kRows>(sums, width, [&](int row, int at, float& low, float& high) {
        const Floats<kShared> from = frame(row).from(segment.place);
        if (column + at < step.layer.width) change(low, from, column + at);
        if (column + at + 1 < step.layer.width) change(high, from, column + at + 1);
      });
    };
    for (int i = 0; i < step.factors; ++i) {
      const FrameSegment factor = load_record(next++);
      for_each_value(factor,
                     [&](float& value, Floats<kShared> from, int64_t at) { value *= from[factor_column(factor, at)]; });
    }
    for (int i = 0; i < step.addends; ++i) {
      const FrameSegment addend = load_record(next++);
      for_each_value(addend, [&](float& value, Floats<kShared> from, int64_t at) { value += from[at]; });
    }
  }

  // Calls visit(segment) with the program's outputs.
  template <class Visit>
  RESFLOW_DEVICE void for_each_output(Visit visit) const {
    for (int i = 0; i < params_.program.outputs; ++i) {
      visit(load_record(params_.program.segments + params_.program.first_output + i));
    }
  }

  // The outputs of a candidate as they are, by a warp; NaN if the weights are another program's.
  RESFLOW_DEVICE void write_columns(int64_t first, int row) const {
    float* const to = params_.outputs + (first + row) * params_.program.output_columns;
    const Floats<kShared> from = frame(row);
    for_each_output([&](const FrameSegment& segment) {
      for (int64_t c = lane_index(); c < segment.width; c += 32) {
        store_global(to + segment.column + c, rows_[row].scored ? from[segment.place + c] : kNan);
      }
    });
  }

  // A candidate's scores from its outputs, the tasks' own logits, by one thread.
  RESFLOW_DEVICE void write_scores(int64_t candidate) const {
    const int row = thread_index();
    const Floats<kShared> from = frame(row);
    float* const logits = logits_ + row * plan_.tasks;
    for_each_output([&](const FrameSegment& segment) {
      for (int32_t c = 0; c < segment.width; ++c) {
        const int32_t task = segment.column + c, parent = plan_.parents[task];
        logits[task] = join_logit(plan_, task, from[segment.place + c], parent < 0 ? 0.0f : logits[parent]);
      }
    });
    write_outputs(params_.call, candidate, rows_[row], logits);
  }

  const ProgramParams& params_;
  const Plan& plan_;
  const float* const weights_;
  RowInfo* const rows_;
  float* const logits_;
  char* const memory_;
  WeightRing ring_;
};

template <Precision kPrecision, int kRows, bool kShared>
struct ProgramKernel {
  using Params = ProgramParams;
  static constexpr int kThreads = kTowerThreads;
  static constexpr int kMinBlocks = static_cast<int>(kProgramBlocks);
  static constexpr const char* kName = "program";

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    const int64_t tiles = (params.call.candidates.count + kRows - 1) / kRows;
    ProgramTile<kPrecision, kRows, kShared> tile(params, shared);
    for (int64_t at = block_index(); at < tiles; at += block_count()) tile.run(at);
  }
};

}  // namespace resflow::cuda
