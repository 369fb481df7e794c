#include "cpu/score.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/round_row.h"
#include "core/topk.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace resflow::cpu {
namespace {

// Tiles of 24 to 192 rows were measured within 4 % of each other; 48 rows of 600 inputs are 115 KB, which with
// a panel of weights (147 KB) leave half of a 512 KB L2 free.
constexpr int64_t kTileRows = 48;

// The last tiles of a call on several threads: so many a thread, of so many register blocks each.
constexpr int64_t kTailTiles = 4;
constexpr int64_t kTailBlocks = 2;

// Up to here a second thread costs more than it brings: waking it takes 10 to 60 us, a pause before the call
// included, and 16 rows take about 60.
constexpr int64_t kRowsWithoutHelp = 16;

// How `count` rows are cut: tiles of about kTileRows, and for several threads a tail of small ones, so that none of
// them waits long for another's last (prerank3, 1024 rows on 2 threads: 88 % of the peak without the tail, 90 % with).
class Tiling {
 public:
  struct Rows {
    int64_t first;
    int64_t count;
  };

  Tiling(int64_t count, int64_t wanted_threads, int64_t block_rows) : count_(count), block_rows_(block_rows) {
    const int64_t blocks = (count + block_rows - 1) / block_rows;
    threads = count <= kRowsWithoutHelp ? 1 : std::max<int64_t>(std::min(wanted_threads, blocks), 1);
    const int64_t tail_tiles = threads > 1 ? kTailTiles * threads : 0;
    tail_blocks_ = std::min(blocks / 2, tail_tiles * kTailBlocks);
    tail_tiles_ = std::min(tail_tiles, tail_blocks_);
    full_blocks_ = blocks - tail_blocks_;
    full_tiles_ = (full_blocks_ * block_rows + kTileRows - 1) / kTileRows;
    full_tiles_ = std::min((full_tiles_ + threads - 1) / threads * threads, full_blocks_);
    tiles = full_tiles_ + tail_tiles_;
  }

  // None beyond the last tile.
  Rows rows(int64_t tile) const {
    if (tile >= tiles) return {count_, 0};
    const int64_t first = first_row(tile);
    return {first, first_row(tile + 1) - first};
  }

  int64_t tiles;
  int64_t threads;

 private:
  // The blocks of either part are spread over its tiles as evenly as they go.
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

// Everything a call's threads share.
struct Call {
  const Model& model;
  const Candidates& candidates;
  const FusionWeights& weights;
  const Kernels& kernels;
  const float* starts;  // [requests or 1, tasks * first_padded()]

  int64_t start_floats() const { return model.plan.tasks * model.plan.first_padded(); }
};

// One thread's scores of one tile, [task][stride].
struct TileScores {
  const float* logits;
  const float* probs;
  const float* score;
  int64_t stride;
};

// The request that candidate `at` belongs to (requests without candidates are passed over).
int64_t request_at(const Candidates& candidates, int64_t at) {
  const int64_t* const end = candidates.offsets + candidates.requests + 1;
  return std::upper_bound(candidates.offsets, end, at) - candidates.offsets - 1;
}

const float* weights_of(const Model& model) {
  return reinterpret_cast<const float*>(static_cast<const char*>(model.packed) + kHeaderBytes);
}

// A tile's per-candidate pointers and what the kernels write, kept by each thread from tile to tile.
struct Workspace {
  Scratch floats;
  std::vector<const float*> start, fusion_weights;
  std::vector<const void*> table_rows, next_table_rows;
  std::vector<float> table_scales;
};

// Where first-layer sums start, and the fusion weights.
void point_rows(const Call& call, Tiling::Rows tile, Workspace& workspace) {
  const Candidates& candidates = call.candidates;
  const int64_t weight_count = fusion_weight_count(call.weights.fusion, call.model.plan.tasks);
  workspace.start.resize(tile.count);
  workspace.fusion_weights.resize(tile.count);
  int64_t request = candidates.offsets ? request_at(candidates, tile.first) : 0;
  for (int64_t r = 0; r < tile.count; ++r) {
    const int64_t at = tile.first + r;
    while (candidates.offsets && candidates.offsets[request + 1] <= at) ++request;
    workspace.start[r] = call.starts + (candidates.user.data ? request : 0) * call.start_floats();
    const int64_t row = call.weights.per == WeightsPer::call      ? 0
                        : call.weights.per == WeightsPer::request ? request
                                                                  : at;
    workspace.fusion_weights[r] = call.weights.values + row * weight_count;
  }
}

void point_table_rows(const Candidates& candidates, Tiling::Rows tile, std::vector<const void*>& rows) {
  rows.resize(tile.count);
  for (int64_t r = 0; r < tile.count; ++r) rows[r] = candidates.table.rows.from(candidates.ids[tile.first + r]).data;
}

// The catalogue's part of a tile.
void look_up(const Candidates& candidates, Tiling::Rows own, Tiling::Rows next, Workspace& workspace, Tile& tile) {
  point_table_rows(candidates, own, workspace.table_rows);
  point_table_rows(candidates, next, workspace.next_table_rows);
  tile.table_rows = workspace.table_rows.data();
  tile.next_table_rows = workspace.next_table_rows.data();
  tile.table_element = candidates.table.rows.element;
  if (!candidates.table.scales) return;
  workspace.table_scales.resize(own.count);
  for (int64_t r = 0; r < own.count; ++r) {
    workspace.table_scales[r] = candidates.table.scales[candidates.ids[own.first + r]];
  }
  tile.table_scales = workspace.table_scales.data();
}

int64_t most_hidden_words(const Plan& plan) {
  int64_t most = 0;
  for (int32_t l = 1; l < plan.layers; ++l) most = std::max(most, plan.layer[l].words);
  return most;
}

// `next` are the rows this thread is likely to score next.
TileScores score_tile(const Call& call, Tiling::Rows own, Tiling::Rows next) {
  thread_local Workspace workspace;
  const Plan& plan = call.model.plan;
  const Candidates& candidates = call.candidates;
  const int64_t rows = own.count, stride = pad_to_lane(rows);
  // Each part begins on a cache line.
  const int64_t hidden_floats = pad_to_lane(plan.slots * rows * plan.hidden_floats);
  const bool rounds_x = plan.precision != Precision::float32 || candidates.x.element != Precision::float32;
  const int64_t x_floats = rounds_x && !candidates.ids ? operand_floats(rows, plan.layer[0].words) : 0;
  const int64_t operand = operand_floats(rows, most_hidden_words(plan));
  float* const hidden = workspace.floats.floats(hidden_floats + x_floats + operand + (2 * plan.tasks + 1) * stride);

  point_rows(call, own, workspace);
  Tile tile{};
  tile.plan = &plan;
  tile.weights = weights_of(call.model);
  tile.rows = rows;
  tile.next_rows = next.count;
  if (candidates.ids) {
    look_up(candidates, own, next, workspace, tile);
  } else {
    tile.x = candidates.x.from(own.first);
    tile.next_x = candidates.x.from(next.first);
  }
  tile.first_input = candidates.user.data ? candidates.user_columns : 0;
  tile.start = workspace.start.data();
  tile.hidden = hidden;
  tile.x_operand = hidden + hidden_floats;
  tile.hidden_operand = tile.x_operand + x_floats;
  tile.logits = tile.hidden_operand + operand;
  tile.probs = tile.logits + plan.tasks * stride;
  tile.score = tile.probs + plan.tasks * stride;
  tile.stride = stride;
  tile.fusion = call.weights.fusion;
  tile.fusion_weights = workspace.fusion_weights.data();
  call.kernels.score_tile(tile);
  return {tile.logits, tile.probs, tile.score, stride};
}

// Multiplies rows [count, columns] with the first layers' weights from first_input on: done(products, rows) has each
// tile's products, [rows][tasks * first_padded()], in to(first row).
template <class To, class Done>
void project_rows(const Model& model, const Rows& x, int64_t count, int64_t first_input, int64_t columns,
                  bool with_bias, int64_t threads, To to, Done done) {
  const Kernels& kernels = cpu::kernels();
  const Tiling tiling(count, threads, kernels.block_rows);
  run_parallel(tiling.tiles, tiling.threads, [&](int64_t tile) {
    thread_local Scratch scratch;
    const Tiling::Rows rows = tiling.rows(tile);
    float* const operand = scratch.floats(operand_floats(rows.count, model.plan.layer[0].words));
    float* const out = to(rows);
    kernels.project(model.plan, weights_of(model),
                    {x.data ? x.from(rows.first) : x, rows.count, first_input, columns, with_bias, operand, out});
    done(out, rows);
  });
}

// Where first-layer sums start: the biases, or each request's user row multiplied out once.
const float* make_starts(const Model& model, const Candidates& candidates, int64_t threads, Scratch& scratch) {
  const int64_t row_floats = model.plan.tasks * model.plan.first_padded();
  const int64_t requests = candidates.user.data ? candidates.requests : 1;
  const int64_t columns = candidates.user.data ? candidates.user_columns : 0;
  float* const starts = scratch.floats(requests * row_floats);
  const auto to = [&](Tiling::Rows rows) { return starts + rows.first * row_floats; };
  project_rows(model, candidates.user, requests, 0, columns, true, threads, to, [](float*, Tiling::Rows) {});
  return starts;
}

void copy_tasks(const float* from, int64_t stride, int64_t tasks, int64_t rows, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < tasks; ++k) to[r * tasks + k] = from[k * stride + r];
  }
}

// The best of a chunk's first and last request, which its neighbours may share; requests that lie inside a
// chunk go straight to the outputs.
struct ChunkEnds {
  int64_t first_request = -1;
  int64_t last_request = -1;
  TopK first, last;
  explicit ChunkEnds(int64_t k) : first(k), last(k) {}
};

// Chunks that threads take from: enough for balance, few enough that their lists stay small.
constexpr int64_t kChunksPerThread = 8;

}  // namespace

void score(const Model& model, const Candidates& candidates, const FusionWeights& weights, int64_t threads,
           float* logits, float* probs, float* score) {
  if (candidates.count == 0) return;
  Scratch scratch;
  const Kernels& kernels = cpu::kernels();
  const Call call{model, candidates, weights, kernels, make_starts(model, candidates, threads, scratch)};
  const Tiling tiling(candidates.count, threads, kernels.block_rows);
  const int64_t tasks = model.plan.tasks;
  run_parallel(tiling.tiles, tiling.threads, [&](int64_t tile) {
    const auto [first, rows] = tiling.rows(tile);
    const TileScores scores = score_tile(call, {first, rows}, tiling.rows(tile + tiling.threads));
    copy_tasks(scores.logits, scores.stride, tasks, rows, logits + first * tasks);
    copy_tasks(scores.probs, scores.stride, tasks, rows, probs + first * tasks);
    std::copy_n(scores.score, rows, score + first);
  });
}

void score_topk(const Model& model, const Candidates& candidates, const FusionWeights& weights, int64_t threads,
                int64_t k, float* scores, int64_t* positions) {
  for (int64_t request = 0; request < candidates.requests; ++request) {
    TopK(k).write(scores + request * k, positions + request * k);
  }
  if (candidates.count == 0) return;
  Scratch scratch;
  const Kernels& kernels = cpu::kernels();
  const Call call{model, candidates, weights, kernels, make_starts(model, candidates, threads, scratch)};
  const Tiling tiling(candidates.count, threads, kernels.block_rows);
  const int64_t chunks = std::min(tiling.tiles, tiling.threads * kChunksPerThread);
  std::vector<ChunkEnds> ends(chunks, ChunkEnds(k));

  run_parallel(chunks, tiling.threads, [&](int64_t chunk) {
    const int64_t first_tile = tiling.tiles * chunk / chunks, end_tile = tiling.tiles * (chunk + 1) / chunks;
    ChunkEnds& own = ends[chunk];
    int64_t request = request_at(candidates, tiling.rows(first_tile).first);
    own.first_request = own.last_request = request;
    for (int64_t tile = first_tile; tile < end_tile; ++tile) {
      const auto [first, rows] = tiling.rows(tile);
      const TileScores tile_scores = score_tile(call, {first, rows}, tiling.rows(tile + 1));
      for (int64_t r = 0; r < rows; ++r) {
        for (; candidates.offsets[request + 1] <= first + r; ++request) {
          if (request != own.first_request && own.last_request == request) {
            own.last.write(scores + request * k, positions + request * k);
          }
        }
        own.last_request = request;
        TopK& best = request == own.first_request ? own.first : own.last;
        best.offer({tile_scores.score[r], first + r - candidates.offsets[request]});
      }
    }
  });

  // A request's lists are merged in the order of the chunks; ranks_before is a total order, so any would do.
  TopK best(k);
  int64_t request = -1;
  const auto close = [&] {
    if (request >= 0) best.write(scores + request * k, positions + request * k);
  };
  for (const ChunkEnds& own : ends) {
    if (own.first_request != request) {
      close();
      request = own.first_request;
    }
    best.merge(own.first);
    if (own.last_request != request) {
      close();
      request = own.last_request;
      best.merge(own.last);
    }
  }
  close();
}

void project_items(const Model& model, const Rows& item, int64_t count, int64_t item_columns, int64_t threads,
                   Precision element, void* rows, float* scales) {
  const int64_t width = model.plan.tasks * model.plan.first_padded();
  const Rows out{rows, element, width};
  const auto to = [&](Tiling::Rows tile) {
    thread_local Scratch scratch;
    return element == Precision::float32 ? static_cast<float*>(rows) + tile.first * width
                                         : scratch.floats(tile.count * width);
  };
  const auto round = [&](const float* products, Tiling::Rows tile) {
    if (element == Precision::float32) return;
    for (int64_t r = 0; r < tile.count; ++r) {
      auto* const row = const_cast<void*>(out.from(tile.first + r).data);
      round_row(products + r * width, width, element, row, scales ? scales + tile.first + r : nullptr);
    }
  };
  project_rows(model, item, count, model.plan.in_features - item_columns, item_columns, false, threads, to, round);
}

double measure_peak(Precision precision, int64_t threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const Kernels& kernels = cpu::kernels();
  std::vector<double> rates(threads);
  std::vector<std::thread> workers;
  for (int64_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      alignas(64) float sink[kLane] = {1.0f, 0.0f};
      const auto begin = Clock::now();
      double operations = 0, elapsed = 0;
      for (; elapsed < seconds; elapsed = std::chrono::duration<double>(Clock::now() - begin).count()) {
        operations += kernels.peak_operations(precision, 100000, sink);
      }
      rates[t] = operations / elapsed * 1e-9;
    });
  }
  for (std::thread& worker : workers) worker.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

}  // namespace resflow::cpu
