#include "cpu/score.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/topk.h"
#include "cpu/isa.h"
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

// A growing buffer of floats that starts on a cache line.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > capacity_) {
      buffer_.reset(static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64})));
      capacity_ = count;
    }
    return buffer_.get();
  }

 private:
  struct Free {
    void operator()(float* buffer) const { ::operator delete(buffer, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> buffer_;
  int64_t capacity_ = 0;
};

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

// Per-candidate pointers: where first-layer sums start, and the fusion weights.
void point_rows(const Call& call, int64_t first, int64_t rows, const float** start, const float** weights) {
  const Candidates& candidates = call.candidates;
  const int64_t weight_count = fusion_weight_count(call.weights.fusion, call.model.plan.tasks);
  int64_t request = candidates.offsets ? request_at(candidates, first) : 0;
  for (int64_t r = 0; r < rows; ++r) {
    while (candidates.offsets && candidates.offsets[request + 1] <= first + r) ++request;
    start[r] = call.starts + (candidates.user ? request : 0) * call.start_floats();
    const int64_t row = call.weights.per == WeightsPer::call      ? 0
                        : call.weights.per == WeightsPer::request ? request
                                                                  : first + r;
    weights[r] = call.weights.values + row * weight_count;
  }
}

// `next` are the rows this thread is likely to score next.
TileScores score_tile(const Call& call, Tiling::Rows own, Tiling::Rows next) {
  const auto [first, rows] = own;
  thread_local Scratch scratch;
  thread_local std::vector<const float*> pointers;
  const Plan& plan = call.model.plan;
  const int64_t stride = pad_to_lane(rows);
  const int64_t hidden_floats = plan.slots * rows * plan.hidden_floats;
  float* const hidden = scratch.floats(hidden_floats + (2 * plan.tasks + 1) * stride);
  float* const logits = hidden + hidden_floats;
  float* const probs = logits + plan.tasks * stride;
  float* const score = probs + plan.tasks * stride;
  pointers.resize(2 * rows);
  point_rows(call, first, rows, pointers.data(), pointers.data() + rows);

  Tile tile{};
  tile.plan = &plan;
  tile.weights = reinterpret_cast<const float*>(static_cast<const char*>(call.model.packed) + kHeaderBytes);
  tile.x = call.candidates.x + first * call.candidates.stride;
  tile.x_stride = call.candidates.stride;
  tile.rows = rows;
  tile.next_x = call.candidates.x + next.first * call.candidates.stride;
  tile.next_rows = next.count;
  tile.first_input = call.candidates.user ? call.candidates.user_columns : 0;
  tile.start = pointers.data();
  tile.hidden = hidden;
  tile.logits = logits;
  tile.probs = probs;
  tile.score = score;
  tile.stride = stride;
  tile.fusion = call.weights.fusion;
  tile.fusion_weights = pointers.data() + rows;
  call.kernels.score_tile(tile);
  return {logits, probs, score, stride};
}

template <class Work>
void run_parallel(int64_t count, int64_t threads, Work work) {
  parallel_for(count, threads, [](void* context, int64_t index) { (*static_cast<Work*>(context))(index); }, &work);
}

// Where first-layer sums start: the biases, or each request's user row multiplied out once.
const float* make_starts(const Model& model, const Candidates& candidates, const Kernels& kernels, int64_t threads,
                         Scratch& scratch) {
  const Plan& plan = model.plan;
  const auto* const weights = reinterpret_cast<const float*>(static_cast<const char*>(model.packed) + kHeaderBytes);
  const int64_t row_floats = plan.tasks * plan.first_padded();
  const int64_t requests = candidates.user ? candidates.requests : 1;
  float* const starts = scratch.floats(requests * row_floats);
  const int64_t columns = candidates.user ? candidates.user_columns : 0;
  const Tiling tiling(requests, threads, kernels.block_rows);
  run_parallel(tiling.tiles, tiling.threads, [&](int64_t tile) {
    const auto [first, rows] = tiling.rows(tile);
    kernels.project(plan, weights, candidates.user ? candidates.user + first * candidates.user_stride : nullptr,
                    candidates.user_stride, rows, columns, starts + first * row_floats);
  });
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
  const Call call{model, candidates, weights, kernels, make_starts(model, candidates, kernels, threads, scratch)};
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
  const Call call{model, candidates, weights, kernels, make_starts(model, candidates, kernels, threads, scratch)};
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

double measure_fma_gflops(int64_t threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const Kernels& kernels = cpu::kernels();
  std::vector<double> rates(threads);
  std::vector<std::thread> workers;
  for (int64_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      alignas(64) float sink[kLane] = {1.0f, 0.0f};
      const auto begin = Clock::now();
      double flops = 0, elapsed = 0;
      for (; elapsed < seconds; elapsed = std::chrono::duration<double>(Clock::now() - begin).count()) {
        flops += kernels.multiply_add_flops(100000, sink);
      }
      rates[t] = flops / elapsed * 1e-9;
    });
  }
  for (std::thread& worker : workers) worker.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

}  // namespace resflow::cpu
