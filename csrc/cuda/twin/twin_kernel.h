// The kernels of twin towers: one prepares users' vectors for the products, one scores tiles of items.
//
// A block scores a tile of kItems items, one per thread, for up to kRequests requests. Rows pass through shared memory
// in chunks of 64 bytes of a task's vectors, in a ring of kStages chunks, so that global memory is read in whole
// sectors whatever the row length, and once for all requests of the block.
#pragma once

#include "core/candidates.h"
#include "cuda/towers/head.h"
#include "cuda/towers/row_value.h"
#include "cuda/towers/segments.h"
#include "cuda/twin/twin_product.h"

namespace resflow::cuda {

constexpr int kPieceBytes = 16;
constexpr int kChunkPieces = 4;
constexpr int kChunkBytes = kChunkPieces * kPieceBytes;

// Users' vectors [request][task][chunks][pieces per chunk], in int8 with scales [request][task].
struct TwinUsers {
  Words4* words;
  float* scales;
  int64_t requests;
  int64_t chunks;
  int pieces;  // of a user's vector per chunk of an item's

  RESFLOW_BOTH Words4* of(int64_t request, int64_t tasks, int64_t task, int64_t chunk) const {
    return words + ((request * tasks + task) * chunks + chunk) * pieces;
  }
};

// Prepares users' vectors, one warp per user and task.
struct PrepareUsers {
  struct Params {
    TwinModel model;
    Rows user;
    Precision element;  // of the table
    TwinUsers to;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "twin users";
  static constexpr int kWarps = kThreads / 32;

  static RESFLOW_DEVICE void run(const Params& params, char*) {
    const int64_t tasks = params.model.tasks, width = params.model.width;
    const int64_t part = block_index() * kWarps + thread_index() / 32;
    if (part >= params.to.requests * tasks) return;
    const int64_t request = part / tasks, task = part % tasks, first = task * width;
    const char* const user = row_at(params.user, request);
    const int lane = thread_index() % 32;
    auto* const words = reinterpret_cast<uint32_t*>(params.to.of(request, tasks, task, 0));
    const int64_t count = params.to.chunks * params.to.pieces * 4;
    const auto value = [&](int64_t i) { return i < width ? value_of(user, params.user.element, first + i) : 0.0f; };
    if (params.element != Precision::int8) {
      for (int64_t at = lane; at < count; at += 32) store_global(words + at, word_of_float(value(at)));
      return;
    }
    const float scale = scale_of_row(user, params.user.element, first, width, lane);
    if (lane == 0) store_global(params.to.scales + part, scale);
    const float reciprocal = int8_reciprocal(scale);
    for (int64_t at = lane; at < count; at += 32) {
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) {
        word |= (static_cast<uint32_t>(int8_step(value(4 * at + i) * reciprocal)) & 0xff) << 8 * i;
      }
      store_global(words + at, word);
    }
  }
};

struct TwinParams {
  TwinModel model;
  TwinTable table;
  TwinUsers users;
  FusionWeights weights;
  int64_t weight_count;  // per candidate
  int unit;  // bytes per load: 16 if every task's vector begins and ends at a multiple of 16, else 4, 2 or 1

  // Candidates: lists of ids, or (if ids is null) items from first_item on for requests from first_request on.
  const int64_t* ids;
  Requests lists;
  int64_t first_item, items;
  int64_t first_request, requests;

  // Outputs by index in ids, or request by request with `stride` between requests. The first two may be null.
  float* logits;
  float* probs;
  float* score;
  int64_t stride;
};

template <Precision kElement, int kRequests>
struct ScoreItems {
  using Params = TwinParams;
  using Product = TwinProduct<kElement>;
  using Sum = typename Product::Sum;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "twin score";

  static constexpr int kItemShift = 7;
  static constexpr int kItems = 1 << kItemShift;
  static_assert(kItems == kThreads);
  static constexpr int kStages = 3;
  // The chunk plus one piece of padding: the rows of eight threads are then in different banks.
  static constexpr int kPitch = kChunkPieces + 1;
  static constexpr int kUserPieces = kChunkPieces * Product::kUserPieces;
  static constexpr int kStageWords = kItems * kPitch + kRequests * kUserPieces;

  static constexpr int64_t shared_bytes(int64_t tasks) {
    return kStages * kStageWords * sizeof(Words4) + tasks * kRequests * kItems * sizeof(float);
  }

  // The items and requests that a block scores.
  struct Tile {
    int64_t first;  // index in ids, or item
    int rows;
    int64_t request;  // the first request
    int requests;
  };

  // The index of a chunk of a task's vectors.
  struct Chunk {
    int32_t task;
    int64_t at;

    RESFLOW_DEVICE void next(int64_t chunks) {
      if (++at < chunks) return;
      at = 0;
      ++task;
    }
  };

  static RESFLOW_DEVICE void run(const Params& params, char* memory) {
    if (params.ids && !params.lists.valid()) return write_nan(params);
    Tile tile;
    if (!find_tile(params, &tile)) return;
    Words4* const stages = reinterpret_cast<Words4*>(memory);
    float* const logits = reinterpret_cast<float*>(stages + kStages * kStageWords) + thread_index();
    const char* rows[kChunkPieces];
#pragma unroll
    for (int i = 0; i < kChunkPieces; ++i) rows[i] = row_of(params, item_of(params, tile, row_to_copy(i)));
    const int64_t item = item_of(params, tile, thread_index());
    const int64_t chunks = params.users.chunks, steps = params.model.tasks * chunks;

    Chunk ahead{0, 0}, now{0, 0};
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) {
      if (step < steps) copy_chunk(params, tile, rows, ahead, stages + step * kStageWords);
      copy_async_commit();
      ahead.next(chunks);
    }
    Sum sums[kRequests] = {};
    int slot = 0;
    for (int64_t step = 0; step < steps; ++step) {
      copy_async_wait<kStages - 2>();
      sync_block();
      const int free = slot == 0 ? kStages - 1 : slot - 1;
      if (step + kStages - 1 < steps) copy_chunk(params, tile, rows, ahead, stages + free * kStageWords);
      copy_async_commit();
      ahead.next(chunks);
      add_chunk(stages + slot * kStageWords, valid_bytes(params, now.at), sums);
      if (now.at == chunks - 1) finish_task(params, tile, item, now.task, sums, logits);
      now.next(chunks);
      slot = slot == kStages - 1 ? 0 : slot + 1;
    }
    write(params, tile, logits);
  }

  static RESFLOW_DEVICE bool find_tile(const Params& params, Tile* tile) {
    if (params.ids) {
      Segment segment;
      if (!params.lists.find(block_index(), kItemShift, &segment) || segment.first == segment.end) return false;
      *tile = {segment.first, static_cast<int>(segment.end - segment.first), segment.request, 1};
      return true;
    }
    // Blocks of the same items are consecutive: all but the first find the items in the L2 cache.
    const int64_t groups = (params.requests + kRequests - 1) / kRequests;
    const int64_t first = block_index() / groups * kItems, group = block_index() % groups * kRequests;
    const int64_t rows = params.items - first, requests = params.requests - group;
    *tile = {params.first_item + first, static_cast<int>(rows < kItems ? rows : kItems), params.first_request + group,
             static_cast<int>(requests < kRequests ? requests : kRequests)};
    return true;
  }

  // The item of a row of the tile; negative past the tile's end and for an id that is no item.
  static RESFLOW_DEVICE int64_t item_of(const Params& params, const Tile& tile, int row) {
    if (row >= tile.rows) return -1;
    if (!params.ids) return tile.first + row;
    const int64_t item = load_constant(params.ids + tile.first + row);
    return item < params.table.items ? item : -1;
  }

  static RESFLOW_DEVICE const char* row_of(const Params& params, int64_t item) {
    if (item < 0) return nullptr;
    return static_cast<const char*>(params.table.rows.data) + item * params.table.rows.stride * bytes_of(kElement);
  }

  static RESFLOW_DEVICE int64_t valid_bytes(const Params& params, int64_t chunk) {
    const int64_t left = params.model.width * bytes_of(kElement) - chunk * kChunkBytes;
    return left < kChunkBytes ? left : kChunkBytes;
  }

  // Four threads copy a chunk of a row, one piece each.
  static RESFLOW_DEVICE int row_to_copy(int i) { return thread_index() / kChunkPieces + i * (kThreads / kChunkPieces); }

  static RESFLOW_DEVICE void copy_chunk(const Params& params, const Tile& tile, const char* const (&rows)[kChunkPieces],
                                        const Chunk& chunk, Words4* stage) {
    const int piece = thread_index() % kChunkPieces;
    const auto bytes = static_cast<int>(valid_bytes(params, chunk.at)) - piece * kPieceBytes;
    const int64_t offset =
        chunk.task * params.model.width * bytes_of(kElement) + chunk.at * kChunkBytes + piece * kPieceBytes;
    if (bytes > 0) {
#pragma unroll
      for (int i = 0; i < kChunkPieces; ++i) {
        Words4* const to = stage + row_to_copy(i) * kPitch + piece;
        const char* const from = rows[i] ? rows[i] + offset : nullptr;
        if (params.unit == kPieceBytes) {
          copy_async_16(to, from ? from : static_cast<const char*>(params.table.rows.data), from ? kPieceBytes : 0);
        } else {
          *to = read_piece(from, bytes < kPieceBytes ? bytes : kPieceBytes, params.unit);
        }
      }
    }
    copy_users(params, tile, chunk, stage + kItems * kPitch);
  }

  // The first `bytes` of a piece, then zeros: the bytes that follow may be another task's or item's, whose NaN must not
  // enter the sum.
  static RESFLOW_DEVICE Words4 read_piece(const char* from, int bytes, int unit) {
    Words4 words{};
    if (!from) return words;
    if (unit == 4) {
      read_units<uint32_t>(from, bytes, words);
    } else if (unit == 2) {
      read_units<uint16_t>(from, bytes, words);
    } else {
      read_units<uint8_t>(from, bytes, words);
    }
    return words;
  }

  template <class Unit>
  static RESFLOW_DEVICE void read_units(const char* from, int bytes, Words4& words) {
    constexpr int kSize = sizeof(Unit);
#pragma unroll
    for (int at = 0; at < kPieceBytes; at += kSize) {
      if (at >= bytes) return;
      const uint32_t value = load_constant(reinterpret_cast<const Unit*>(from + at));
      words.words[at / 4] |= value << at % 4 * 8;
    }
  }

  static RESFLOW_DEVICE void copy_users(const Params& params, const Tile& tile, const Chunk& chunk, Words4* to) {
    for (int at = thread_index(); at < kRequests * kUserPieces; at += kThreads) {
      const int request = at / kUserPieces;
      const Words4* from = params.users.words;
      if (request < tile.requests) {
        from = params.users.of(tile.request + request, params.model.tasks, chunk.task, chunk.at) + at % kUserPieces;
      }
      copy_async_16(to + at, from, request < tile.requests ? kPieceBytes : 0);
    }
  }

  static RESFLOW_DEVICE void add_chunk(const Words4* stage, int64_t bytes, Sum (&sums)[kRequests]) {
    const Words4* const row = stage + thread_index() * kPitch;
    const Words4* const users = stage + kItems * kPitch;
#pragma unroll
    for (int piece = 0; piece < kChunkPieces; ++piece) {
      if (piece * kPieceBytes >= bytes) return;
      const Words4 words = row[piece];
#pragma unroll
      for (int r = 0; r < kRequests; ++r) {
        Product::add(sums[r], words, users + r * kUserPieces + piece * Product::kUserPieces);
      }
    }
  }

  // Stores logits z_k of this thread's item in [task][request][item], and resets the sums for the next task.
  static RESFLOW_DEVICE void finish_task(const Params& params, const Tile& tile, int64_t item, int32_t task,
                                         Sum (&sums)[kRequests], float* logits) {
    const int32_t tasks = params.model.tasks, parent = params.model.parents[task];
    float item_scale = 1.0f;
    if constexpr (kElement == Precision::int8) {
      if (item >= 0) item_scale = load_constant(params.table.scales + item * tasks + task);
    }
#pragma unroll
    for (int r = 0; r < kRequests; ++r) {
      float logit = static_cast<float>(sums[r]);
      sums[r] = 0;
      if (r >= tile.requests) continue;
      if constexpr (kElement == Precision::int8) {
        logit *= load_constant(params.users.scales + (tile.request + r) * tasks + task) * item_scale;
      }
      if (item < 0) logit = kNan;
      if (parent >= 0) {
        logit = residual_logit(logit, logits[(parent * kRequests + r) * kItems], params.model.non_increasing);
      }
      logits[(task * kRequests + r) * kItems] = logit;
    }
  }

  // The grid has at least one block per window, so every candidate is written.
  static RESFLOW_DEVICE void write_nan(const Params& params) {
    const int64_t candidate = block_index() * kItems + thread_index();
    if (candidate >= params.lists.count) return;
    for (int32_t k = 0; k < params.model.tasks; ++k) {
      if (params.logits) store_global(params.logits + candidate * params.model.tasks + k, kNan);
      if (params.probs) store_global(params.probs + candidate * params.model.tasks + k, kNan);
    }
    store_global(params.score + candidate, kNan);
  }

  static RESFLOW_DEVICE void write(const Params& params, const Tile& tile, const float* logits) {
    if (thread_index() >= tile.rows) return;
    const int32_t tasks = params.model.tasks;
    const int64_t candidate = tile.first + thread_index();
    for (int r = 0; r < tile.requests; ++r) {
      const int64_t request = tile.request + r;
      const int64_t to =
          params.ids ? candidate : (request - params.first_request) * params.stride + candidate - params.first_item;
      const auto logit = [&](int32_t k) { return logits[(k * kRequests + r) * kItems]; };
      for (int32_t k = 0; params.logits && k < tasks; ++k) store_global(params.logits + to * tasks + k, logit(k));
      for (int32_t k = 0; params.probs && k < tasks; ++k)
        store_global(params.probs + to * tasks + k, sigmoid(logit(k)));
      const int64_t row = weights_row(params.weights.per, request, candidate);
      const float* const weights = params.weights.values + row * params.weight_count;
      const auto weight = [&](int32_t index) { return load_constant(weights + index); };
      store_global(params.score + to, fuse(params.weights.fusion, tasks, logit, weight));
    }
  }
};

}  // namespace resflow::cuda
