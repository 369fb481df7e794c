// Multiplies rows by the first layers of all tasks: users' projections, and the rows of a catalog.
#pragma once

#include "cuda/towers/dispatch.h"
#include "cuda/towers/layer.h"

namespace resflow::cuda {

struct ProjectParams {
  Plan plan;
  const void* packed;
  Source source;
  int64_t count;
  FirstLayer first;
  int64_t stride;  // of the operand, in words
  int32_t with_bias;
  int32_t parts;      // blocks that share a tile of rows, each taking some of the tasks' panels
  float* out;         // [count][tasks * first_padded()]
  char* tile_memory;  // [blocks][rows * stride words], unused if tiles are in shared memory
};

template <Precision kPrecision, bool kShared>
struct ProjectKernel {
  using Params = ProjectParams;
  static constexpr int kRows = static_cast<int>(kProjectRows);
  static constexpr int kThreads = kTowerThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "project";

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    const LayerLayout& layer = params.plan.layer[0];
    const auto* const weights = reinterpret_cast<const float*>(static_cast<const char*>(params.packed) + kHeaderBytes);
    const int64_t tile = block_index() / params.parts, part = block_index() % params.parts;
    const int64_t panels = panels_of(layer), jobs = panels * params.plan.tasks;
    const int64_t first_job = part * jobs / params.parts, end_job = (part + 1) * jobs / params.parts;

    const int64_t first = tile * kRows, left = params.count - first;
    const RowRange range{first, static_cast<int>(left < kRows ? left : kRows)};
    auto* const words = reinterpret_cast<uint32_t*>(
        kShared ? shared + kRingBytes : params.tile_memory + block_index() * 4 * kRows * params.stride);
    if (params.first.words > 0) {
      load_input<kPrecision, kRows>(params.source, range, params.first, OperandWriter<kShared>{words, params.stride});
    }

    int64_t job = first_job, word = params.first.first_word;
    const int64_t end_word = params.first.first_word + params.first.words;
    const auto next = [&]() -> Chunk {
      if (job == end_job || word == end_word) return {weights, 0, 0};
      const Chunk chunk =
          chunk_of(layer, weights + job / panels * params.plan.task_floats, job % panels, word, end_word);
      word += kChunkWords;
      if (word >= end_word && ++job < end_job) word = params.first.first_word;
      if (word > end_word) word = end_word;
      return chunk;
    };
    WeightRing ring(shared);
    ring.begin(next);

    const bool packed = packed_for(params.plan, params.packed);
    for (int64_t own = first_job; own < end_job; ++own) {
      const int64_t task = own / panels, column = own % panels * kPanelWidth, columns = layer.padded - column;
      const int width = static_cast<int>(columns < kPanelWidth ? columns : kPanelWidth);
      const float* const biases = weights + task * params.plan.task_floats + layer.bias + column;
      PanelSums<kRows> sums{};
      if (params.with_bias) {
        begin_sums<kRows>(sums, width, [&](int, int64_t at) { return load_pair(biases + at); });
      }
      multiply_panel<kPrecision, kRows>(sums, Operand<kShared>{words, params.stride}, params.first.words, width, ring,
                                        next);
      float* const out = params.out + task * layer.padded + column;
      const int64_t stride = params.plan.tasks * layer.padded;
      for_each_pair<kRows>(sums, width, [&](int row, int at, float low, float high) {
        if (row >= range.count) return;
        store_global(reinterpret_cast<Pair*>(out + (first + row) * stride + at),
                     packed ? Pair{low, high} : Pair{kNan, kNan});
      });
    }
  }
};

}  // namespace resflow::cuda
