#include "cpu/twin/twin.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "core/check.h"
#include "core/number_formats.h"
#include "core/round_row.h"
#include "core/topk.h"
#include "cpu/simd/isa.h"
#include "cpu/threads/scratch.h"
#include "cpu/threads/thread_pool.h"

namespace resflow::cpu {
namespace {

// Bytes of a tile of rows: it stays in a core's L2 (512 KB or more) while every request of a pass reads it.
constexpr int64_t kTileBytes = 64 * 1024;
constexpr int64_t kMaxTileRows = 1024;

// Number of requests that share a pass over the table. At 16, computation takes several times as long as reading.
constexpr int64_t kRequestsPerPass = 16;

// Consecutive tiles that a thread takes at once: it reads itself what it prefetches, except at the end of the last
// tile.
constexpr int64_t kTilesPerRun = 8;

// Least number of candidates per thread: a candidate takes 3 to 10 ns, waking a thread 10 to 60 us.
constexpr int64_t kCandidatesPerThread = 4096;

// Pieces per thread that lists of ids are divided into, and the least number of candidates per piece.
constexpr int64_t kPiecesPerThread = 4;
constexpr int64_t kPieceRows = 256;

int64_t tile_rows(const TwinCall& call) {
  const int64_t row_bytes = call.model.tasks * call.model.width * bytes_of(call.table.rows.element);
  return std::clamp(kTileBytes / row_bytes / kLane * kLane, kLane, kMaxTileRows);
}

int64_t useful_threads(const TwinCall& call, int64_t threads) {
  const int64_t candidates = call.ids ? call.count : call.count * std::min(call.requests, kRequestsPerPass);
  return std::clamp<int64_t>(candidates / kCandidatesPerThread, 1, std::max<int64_t>(threads, 1));
}

const float* prepared_user(const TwinCall& call, int64_t request, float* out) {
  kernels().twin_user(call.model, call.table.rows.element, call.user.from(request), out);
  return out;
}

// Consecutive candidates of one request, by index in ids or by item.
struct RequestSpan {
  int64_t request;
  int64_t first;
  int64_t rows;
};

// Indices in ids of the items that a thread prefetches while it scores.
struct Ahead {
  int64_t from;
  int64_t rows;
};

// A tile's results, [task][stride]; they are valid until the thread's next tile.
struct TwinScores {
  const float* logits;
  const float* probs;
  const float* score;
  int64_t stride;
};

TwinScores score_span(const TwinCall& call, const float* user, RequestSpan span, Ahead ahead) {
  thread_local Scratch scratch;
  const int64_t tasks = call.model.tasks, stride = pad_to_lane(span.rows);
  const int64_t count = fusion_weight_count(call.weights.fusion, tasks);
  const int64_t row = weights_row(call.weights.per, span.request, span.first);
  TwinTile tile{};
  tile.model = &call.model;
  tile.table = &call.table;
  tile.user = user;
  tile.ids = call.ids;
  tile.first = span.first;
  tile.rows = span.rows;
  tile.prefetch_from = ahead.from;
  tile.prefetch_rows = ahead.rows;
  tile.fusion = call.weights.fusion;
  tile.fusion_weights = call.weights.values + row * count;
  tile.fusion_weights_step = call.weights.per == WeightsPer::candidate ? count : 0;
  tile.logits = scratch.floats((2 * tasks + 1) * stride);
  tile.probs = tile.logits + tasks * stride;
  tile.score = tile.probs + tasks * stride;
  tile.stride = stride;
  kernels().score_twin_tile(tile);
  return {tile.logits, tile.probs, tile.score, stride};
}

// Scores every item for every request: calls done(worker, request, span, scores) for each tile. A worker's spans of a
// request are in the order of their items.
template <class Done>
void stream(const TwinCall& call, int64_t first_request, int64_t requests, int64_t workers, Done done) {
  const int64_t rows = tile_rows(call), items = call.count;
  const int64_t user_floats = twin_user_floats(call.model, call.table.rows.element);
  Scratch users;
  float* const prepared = users.floats(requests * user_floats);
  for (int64_t r = 0; r < requests; ++r) prepared_user(call, first_request + r, prepared + r * user_floats);

  const int64_t tiles = (items + rows - 1) / rows;
  const int64_t run_tiles = std::clamp<int64_t>(tiles / (4 * workers), 1, kTilesPerRun);
  std::atomic<int64_t> next_run{0};
  run_parallel(workers, workers, [&](int64_t worker) {
    for (;;) {
      const int64_t begin = next_run.fetch_add(1, std::memory_order_relaxed) * run_tiles * rows;
      if (begin >= items) return;
      const int64_t end = std::min(begin + run_tiles * rows, items);
      for (int64_t first = begin; first < end; first += rows) {
        const int64_t count = std::min(rows, end - first);
        for (int64_t r = 0; r < requests; ++r) {
          const RequestSpan span{first_request + r, first, count};
          done(worker, r, span, score_span(call, prepared + r * user_floats, span, {}));
        }
      }
    }
  });
}

// Divides the requests' lists into pieces, so that threads share long lists. A request without candidates has one empty
// piece.
std::vector<RequestSpan> cut_lists(const TwinCall& call, int64_t threads) {
  const int64_t rows = std::max(kPieceRows, call.count / (threads * kPiecesPerThread));
  std::vector<RequestSpan> pieces;
  for (int64_t request = 0; request < call.requests; ++request) {
    int64_t first = call.offsets[request];
    const int64_t end = call.offsets[request + 1];
    do {
      pieces.push_back({request, first, std::min(rows, end - first)});
      first += rows;
    } while (first < end);
  }
  return pieces;
}

// Calls done(span, scores) for each tile of a piece, in order.
template <class Done>
void score_piece(const TwinCall& call, const RequestSpan& piece, int64_t rows, Done done) {
  thread_local Scratch scratch;
  if (piece.rows == 0) return;
  float* const buffer = scratch.floats(twin_user_floats(call.model, call.table.rows.element));
  const float* const user = prepared_user(call, piece.request, buffer);
  const int64_t end = piece.first + piece.rows;
  for (int64_t first = piece.first; first < end; first += rows) {
    const int64_t count = std::min(rows, end - first), after = first + count;
    // Past the piece, the list continues with candidates that this thread is likely to score next.
    const Ahead ahead{after, std::min(rows, call.count - after)};
    const RequestSpan span{piece.request, first, count};
    done(span, score_span(call, user, span, ahead));
  }
}

// Rows per tile of a list: far enough between prefetching a row and reading it, few enough to stay in L1 until then.
constexpr int64_t kListRows = 64;

void stream_topk(const TwinCall& call, const TopKOut& out, int64_t workers) {
  const auto [k, scores, positions] = out;
  for (int64_t first = 0; first < call.requests; first += kRequestsPerPass) {
    const int64_t requests = std::min(kRequestsPerPass, call.requests - first);
    std::vector<TopK> best(workers * requests, TopK(k));
    stream(call, first, requests, workers,
           [&](int64_t worker, int64_t r, const RequestSpan& span, const TwinScores& tile) {
             best[worker * requests + r].offer_run(tile.score, span.rows, span.first);
           });
    for (int64_t r = 0; r < requests; ++r) {
      for (int64_t worker = 1; worker < workers; ++worker) best[r].merge(best[worker * requests + r]);
      best[r].write(scores + (first + r) * k, positions + (first + r) * k);
    }
  }
}

void list_topk(const TwinCall& call, const TopKOut& out, int64_t threads) {
  const int64_t k = out.k;
  const std::vector<RequestSpan> pieces = cut_lists(call, threads);
  const auto count = static_cast<int64_t>(pieces.size());
  const auto same_request = [&](int64_t a, int64_t b) {
    return b >= 0 && b < count && pieces[a].request == pieces[b].request;
  };
  const auto write = [&](TopK& best, int64_t request) {
    best.write(out.scores + request * k, out.positions + request * k);
  };
  std::vector<TopK> shared(count, TopK(k));  // for requests in several pieces
  run_parallel(count, threads, [&](int64_t i) {
    const RequestSpan& piece = pieces[i];
    TopK best(k);
    score_piece(call, piece, kListRows, [&](const RequestSpan& span, const TwinScores& tile) {
      best.offer_run(tile.score, span.rows, span.first - call.offsets[piece.request]);
    });
    if (same_request(i, i - 1) || same_request(i, i + 1)) {
      shared[i] = std::move(best);
    } else {
      write(best, piece.request);
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    if (same_request(i, i - 1)) {
      shared[i].merge(shared[i - 1]);
      if (!same_request(i, i + 1)) write(shared[i], pieces[i].request);
    }
  }
}

}  // namespace

void twin_scores(const TwinCall& call, const ScoresOut& out, int64_t threads) {
  if (call.count == 0 || call.requests == 0) return;
  const int64_t tasks = call.model.tasks;
  const auto keep = [&](const TwinScores& tile, int64_t rows, int64_t to) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < tasks; ++k) {
        out.logits[(to + r) * tasks + k] = tile.logits[k * tile.stride + r];
        out.probs[(to + r) * tasks + k] = tile.probs[k * tile.stride + r];
      }
    }
    std::copy_n(tile.score, rows, out.score + to);
  };
  threads = useful_threads(call, threads);
  if (call.ids) {
    const std::vector<RequestSpan> pieces = cut_lists(call, threads);
    run_parallel(static_cast<int64_t>(pieces.size()), threads, [&](int64_t i) {
      score_piece(call, pieces[i], kListRows,
                  [&](const RequestSpan& span, const TwinScores& tile) { keep(tile, span.rows, span.first); });
    });
    return;
  }
  for (int64_t first = 0; first < call.requests; first += kRequestsPerPass) {
    const int64_t requests = std::min(kRequestsPerPass, call.requests - first);
    stream(call, first, requests, threads, [&](int64_t, int64_t, const RequestSpan& span, const TwinScores& tile) {
      keep(tile, span.rows, span.request * call.count + span.first);
    });
  }
}

void twin_topk(const TwinCall& call, const TopKOut& out, int64_t threads) {
  threads = useful_threads(call, threads);
  call.ids ? list_topk(call, out, threads) : stream_topk(call, out, threads);
}

void twin_rows(const Rows& vectors, int64_t count, int64_t tasks, int64_t width, Precision precision, void* rows,
               float* scales, int64_t threads) {
  constexpr int64_t kRowsAtOnce = 256;
  const int64_t columns = tasks * width;
  run_parallel((count + kRowsAtOnce - 1) / kRowsAtOnce, threads, [&](int64_t part) {
    thread_local Scratch scratch;
    for (int64_t r = part * kRowsAtOnce; r < std::min((part + 1) * kRowsAtOnce, count); ++r) {
      const float* values = static_cast<const float*>(vectors.from(r).data);
      if (vectors.element == Precision::bfloat16) {
        const auto* const halves = static_cast<const uint16_t*>(vectors.from(r).data);
        float* const widened = scratch.floats(columns);
        std::transform(halves, halves + columns, widened, from_bfloat16);
        values = widened;
      }
      for (int64_t k = 0; k < tasks; ++k) {
        void* const to = static_cast<char*>(rows) + (r * columns + k * width) * bytes_of(precision);
        round_row(values + k * width, width, precision, to, scales ? scales + r * tasks + k : nullptr);
      }
    }
  });
}

double measure_read_bandwidth(const void* from, int64_t bytes, int64_t threads) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kPart = 1 << 20;
  const Kernels& reader = kernels();
  std::atomic<int64_t> next{0};
  std::atomic<float> sum{0};  // keeps the compiler from dropping reads
  const auto begin = Clock::now();
  run_parallel(threads, threads, [&](int64_t) {
    float local = 0;
    for (int64_t offset; (offset = next.fetch_add(kPart, std::memory_order_relaxed)) < bytes;) {
      local += reader.read_memory(static_cast<const char*>(from) + offset, std::min(kPart, bytes - offset));
    }
    sum.store(local, std::memory_order_relaxed);
  });
  return static_cast<double>(bytes) / std::chrono::duration<double>(Clock::now() - begin).count() * 1e-9;
}

}  // namespace resflow::cpu
