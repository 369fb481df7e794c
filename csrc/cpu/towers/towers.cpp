#include "cpu/towers/towers.h"

#include <algorithm>
#include <vector>

#include "core/program.h"
#include "core/topk.h"
#include "cpu/simd/isa.h"
#include "cpu/towers/project.h"
#include "cpu/towers/tile.h"

namespace resflow::cpu {
namespace {

void copy_tasks(const float* from, int64_t stride, int64_t tasks, int64_t rows, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < tasks; ++k) to[r * tasks + k] = from[k * stride + r];
  }
}

// The best candidates of a chunk's first and last request, which neighbouring chunks may share; requests inside a chunk
// are written directly to the outputs.
struct ChunkEnds {
  int64_t first_request = -1;
  int64_t last_request = -1;
  TopK first, last;
  explicit ChunkEnds(int64_t k) : first(k), last(k) {}
};

// Chunks per thread: enough for load balance, few enough to keep their lists small.
constexpr int64_t kChunksPerThread = 8;

}  // namespace

void towers_scores(const ScoringCall& call, const ScoresOut& out, int64_t threads) {
  if (call.scored() == 0) return;
  Scratch scratch;
  const PreparedCall prepared(call, threads, scratch);
  const Tiling tiling(call.scored(), threads, prepared.kernels.block_rows);
  const int64_t tasks = call.tasks();
  run_parallel(tiling.tiles, tiling.threads, [&](int64_t tile) {
    const auto [first, rows] = tiling.rows(tile);
    const TileScores scores = score_tile(prepared, {first, rows}, tiling.rows(tile + tiling.threads));
    copy_tasks(scores.logits, scores.stride, tasks, rows, out.logits + first * tasks);
    copy_tasks(scores.probs, scores.stride, tasks, rows, out.probs + first * tasks);
    std::copy_n(scores.score, rows, out.score + first);
  });
}

void towers_topk(const ScoringCall& call, const TopKOut& out, int64_t threads) {
  const auto [k, scores, positions] = out;
  const Candidates& candidates = call.candidates;
  for (int64_t request = 0; request < candidates.requests; ++request) {
    TopK(k).write(scores + request * k, positions + request * k);
  }
  if (candidates.count == 0) return;
  Scratch scratch;
  const PreparedCall prepared(call, threads, scratch);
  const Tiling tiling(candidates.count, threads, prepared.kernels.block_rows);
  const int64_t chunks = std::min(tiling.tiles, tiling.threads * kChunksPerThread);
  std::vector<ChunkEnds> ends(chunks, ChunkEnds(k));

  run_parallel(chunks, tiling.threads, [&](int64_t chunk) {
    const int64_t first_tile = tiling.tiles * chunk / chunks, end_tile = tiling.tiles * (chunk + 1) / chunks;
    ChunkEnds& current = ends[chunk];
    int64_t request = request_at(candidates, tiling.rows(first_tile).first);
    current.first_request = current.last_request = request;
    for (int64_t tile = first_tile; tile < end_tile; ++tile) {
      const auto [first, rows] = tiling.rows(tile);
      const TileScores tile_scores = score_tile(prepared, {first, rows}, tiling.rows(tile + 1));
      for (int64_t r = 0; r < rows; ++r) {
        for (; candidates.offsets[request + 1] <= first + r; ++request) {
          if (request != current.first_request && current.last_request == request) {
            current.last.write(scores + request * k, positions + request * k);
          }
        }
        current.last_request = request;
        TopK& best = request == current.first_request ? current.first : current.last;
        best.offer({tile_scores.score[r], first + r - candidates.offsets[request]});
      }
    }
  });

  // A request's lists are merged in the order of the chunks; ranks_before is a total order, so any order would do.
  TopK best(k);
  int64_t request = -1;
  const auto close = [&] {
    if (request >= 0) best.write(scores + request * k, positions + request * k);
  };
  for (const ChunkEnds& current : ends) {
    if (current.first_request != request) {
      close();
      request = current.first_request;
    }
    best.merge(current.first);
    if (current.last_request != request) {
      close();
      request = current.last_request;
      best.merge(current.last);
    }
  }
  close();
}

void program_outputs(const Model& model, const Rows& x, int64_t count, float* outputs, int64_t threads) {
  if (count == 0) return;
  Candidates candidates{};
  candidates.x = {x, {}};
  candidates.count = count;
  const ScoringCall call{model, candidates, {Fusion::additive, WeightsPer::call, nullptr}};
  Scratch scratch;
  const PreparedCall prepared(call, threads, scratch);
  const Tiling tiling(count, threads, prepared.kernels.block_rows);
  run_parallel(tiling.tiles, tiling.threads, [&](int64_t tile) {
    const Tiling::Rows rows = tiling.rows(tile);
    float* const out = outputs + rows.first * model.plan.program->output_columns;
    output_tile(prepared, rows, tiling.rows(tile + tiling.threads), out);
  });
}

}  // namespace resflow::cpu
