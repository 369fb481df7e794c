#include "cuda/twin/twin.h"

#include "cuda/device/launch.h"

#include <algorithm>

#include "core/check.h"
#include "core/precision.h"
#include "cuda/device/launch.h"
#include "cuda/topk/topk.h"
#include "cuda/towers/rows.h"
#include "cuda/twin/twin_kernel.h"

namespace resflow::cuda {
namespace {

// Largest number of requests per pass over the items, whose scores are kept at once.
constexpr int64_t kRequestsPerPass = 64;

int64_t aligned(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Lays out the parts of a workspace. Without memory it only counts bytes.
struct Workspace {
  char* memory;
  int64_t bytes = 0;

  template <class T>
  T* take(int64_t count) {
    T* const part = memory ? reinterpret_cast<T*>(memory + bytes) : nullptr;
    bytes += aligned(count * static_cast<int64_t>(sizeof(T)));
    return part;
  }
};

TwinUsers users_in(Workspace& workspace, const TwinCall& call) {
  const Precision element = call.table.rows.element;
  TwinUsers users{};
  users.requests = call.requests;
  users.chunks = std::max<int64_t>((call.model.width * bytes_of(element) + kChunkBytes - 1) / kChunkBytes, 1);
  users.pieces = element == Precision::bfloat16 ? 2 * kChunkPieces : kChunkPieces;
  users.words = workspace.take<Words4>(call.requests * call.model.tasks * users.chunks * users.pieces);
  users.scales = workspace.take<float>(element == Precision::int8 ? call.requests * call.model.tasks : 0);
  return users;
}

void prepare(const TwinCall& call, const TwinUsers& users, Stream stream) {
  const int64_t parts = call.requests * call.model.tasks;
  launch<PrepareUsers>({call.model, call.user, call.table.rows.element, users},
                       (parts + PrepareUsers::kWarps - 1) / PrepareUsers::kWarps, 0, stream);
}

int unit_of(const TwinCall& call) {
  const int64_t element = bytes_of(call.table.rows.element);
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(call.table.rows.data));
  const int64_t all = address | call.table.rows.stride * element | call.model.width * element;
  return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : all % 2 == 0 ? 2 : 1;
}

TwinParams params_of(const TwinCall& call, const TwinUsers& users) {
  TwinParams params{};
  params.model = call.model;
  params.table = call.table;
  params.users = users;
  params.weights = call.weights;
  params.weight_count = fusion_weight_count(call.weights.fusion, call.model.tasks);
  params.unit = unit_of(call);
  return params;
}

template <Precision kElement, int kRequests>
void score_in(const TwinParams& params, Stream stream) {
  using Kernel = ScoreItems<kElement, kRequests>;
  const int64_t tiles = (params.items + Kernel::kItems - 1) / Kernel::kItems;
  // There is a block for every window even without requests: it writes NaN.
  const int64_t requests = std::max<int64_t>(params.lists.requests, 1);
  const int64_t blocks = params.ids ? slots(params.lists.count, requests, Kernel::kItemShift)
                                    : tiles * ((params.requests + kRequests - 1) / kRequests);
  launch<Kernel>(params, blocks, Kernel::shared_bytes(params.model.tasks), stream);
}

// A block keeps its requests' logits in shared memory: 512 bytes per task and request, 64 KiB at most.
template <Precision kElement>
void score_items(const TwinParams& params, Stream stream) {
  const int64_t room = 128 / params.model.tasks, wanted = params.ids ? 1 : std::min(params.requests, room);
  if (wanted == 1) return score_in<kElement, 1>(params, stream);
  if (wanted <= 4 || room < 8) return score_in<kElement, 4>(params, stream);
  return score_in<kElement, 8>(params, stream);
}

void score(const TwinParams& params, Stream stream) {
  with_precision<precision_flag::in_tables>(params.table.rows.element,
                                            [&](auto element) { score_items<element.value>(params, stream); });
}

void score_lists(const TwinCall& call, TwinParams params, float* to, int32_t* wrong, Stream stream) {
  params.ids = call.ids;
  params.lists = checked_requests(call.offsets, call.requests, call.count, wrong, stream);
  params.score = to;
  score(params, stream);
}

void score_stream(TwinParams params, int64_t first_request, int64_t requests, int64_t first_item, int64_t items,
                  float* to, int64_t stride, Stream stream) {
  params.first_request = first_request;
  params.requests = requests;
  params.first_item = first_item;
  params.items = items;
  params.score = to;
  params.stride = stride;
  score(params, stream);
}

// Top-k over all items ---------------------------------------------------------------------------------------------

// After a pass, the k best so far become the first scores of the next pass's rows. They precede its items and are
// sorted, so among equal scores the order of row indices is the order of positions.
struct CarryBest {
  struct Params {
    const float* scores;       // [requests][k], the best of the pass
    const int64_t* places;     // their indices in the pass's rows
    const int64_t* positions;  // positions of the first k scores of each row; null in the first pass, which has none
    int64_t requests, k, first_item;
    float* next_scores;  // null after the last pass
    int64_t next_stride;
    float* to_scores;  // null except after the last pass
    int64_t* to_positions;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "twin carry";

  static RESFLOW_DEVICE void run(const Params& params, char*) {
    const int64_t at = block_index() * kThreads + thread_index();
    if (at >= params.requests * params.k) return;
    const float score = load_global(params.scores + at);
    const int64_t place = load_global(params.places + at), request = at / params.k;
    int64_t position = place;
    if (params.positions) {
      position = place < params.k ? load_global(params.positions + request * params.k + place)
                                  : params.first_item + place - params.k;
    }
    store_global(params.to_positions + at, position);
    if (params.next_scores) store_global(params.next_scores + request * params.next_stride + at % params.k, score);
    if (params.to_scores) store_global(params.to_scores + at, score);
  }
};

// The passes over the items for a group of requests, and their part of the workspace.
struct Passes {
  int64_t requests;  // per group
  int64_t items;     // per pass: at least k, so that the first pass finds k
  int64_t count;     // number of passes
  float* scores;     // [requests][k + items], or [requests][items] if there is one pass
  float* best;       // [requests][k], like the next three
  int64_t* places;
  int64_t* positions[2];
  char* topk;

  Passes(const TwinCall& call, int64_t k, int64_t pass_bytes, Workspace& workspace) {
    requests = std::min(call.requests, kRequestsPerPass);
    const int64_t room = pass_bytes / static_cast<int64_t>(sizeof(float)) / std::max<int64_t>(requests, 1);
    items = call.count <= room ? call.count : std::min(std::max(room - k, k), call.count);
    count = items > 0 ? (call.count + items - 1) / items : 1;
    const int64_t row = items + (count > 1 ? k : 0), carried = count > 1 ? requests * k : 0;
    scores = workspace.take<float>(requests * row);
    best = workspace.take<float>(carried);
    places = workspace.take<int64_t>(carried);
    for (int64_t*& of : positions) of = workspace.take<int64_t>(carried);
    topk = workspace.take<char>(topk_workspace_bytes(requests, requests * row, k));
  }
};

void topk_of_group(const TwinCall& call, const TwinParams& params, const Passes& passes, int64_t first_request,
                   int64_t requests, int64_t k, float* scores, int64_t* positions, Stream stream) {
  const auto items_of = [&](int64_t pass) { return std::min(passes.items, call.count - pass * passes.items); };
  for (int64_t pass = 0; pass < passes.count; ++pass) {
    const bool first = pass == 0, last = pass == passes.count - 1;
    const int64_t carried = first ? 0 : k, row = carried + items_of(pass);
    score_stream(params, first_request, requests, pass * passes.items, items_of(pass), passes.scores + carried, row,
                 stream);
    const bool single = passes.count == 1;
    topk(passes.scores, nullptr, requests, requests * row, k, single ? scores : passes.best,
         single ? positions : passes.places, passes.topk, stream);
    if (single) return;
    const CarryBest::Params carry{passes.best,
                                  passes.places,
                                  first ? nullptr : passes.positions[(pass + 1) % 2],
                                  requests,
                                  k,
                                  pass * passes.items,
                                  last ? nullptr : passes.scores,
                                  last ? 0 : k + items_of(pass + 1),
                                  last ? scores : nullptr,
                                  last ? positions : passes.positions[pass % 2]};
    launch<CarryBest>(carry, (requests * k + CarryBest::kThreads - 1) / CarryBest::kThreads, 0, stream);
  }
}

// Lays out the parts of a call's workspace twice: without memory, to measure them, and then in the workspace.
template <class Parts, class... Arguments>
Parts laid_out(Queue& queue, const Arguments&... arguments) {
  Workspace measured{nullptr};
  Parts(measured, arguments...);
  Workspace workspace{static_cast<char*>(queue.workspace(measured.bytes))};
  return Parts(workspace, arguments...);
}

struct ScoresParts {
  TwinUsers users;
  int32_t* wrong;

  ScoresParts(Workspace& workspace, const TwinCall& call)
      : users(users_in(workspace, call)), wrong(workspace.take<int32_t>(1)) {}
};

struct ListParts {
  TwinUsers users;
  float* scores;
  int32_t* wrong;
  char* topk;

  ListParts(Workspace& workspace, const TwinCall& call, int64_t k)
      : users(users_in(workspace, call)),
        scores(workspace.take<float>(call.count)),
        wrong(workspace.take<int32_t>(1)),
        topk(workspace.take<char>(topk_workspace_bytes(call.requests, call.count, k))) {}
};

struct StreamParts {
  TwinUsers users;
  Passes passes;

  StreamParts(Workspace& workspace, const TwinCall& call, int64_t k, int64_t pass_bytes)
      : users(users_in(workspace, call)), passes(call, k, pass_bytes, workspace) {}
};

void list_topk(const TwinCall& call, const TopKOut& out, Queue& queue) {
  const auto parts = laid_out<ListParts>(queue, call, out.k);
  prepare(call, parts.users, queue.stream());
  if (call.count > 0) score_lists(call, params_of(call, parts.users), parts.scores, parts.wrong, queue.stream());
  topk(parts.scores, call.offsets, call.requests, call.count, out.k, out.scores, out.positions, parts.topk,
       queue.stream());
}

}  // namespace

void twin_scores(const TwinCall& call, const ScoresOut& out, Queue& queue) {
  if (call.count == 0 || (!call.ids && call.requests == 0)) return;
  const auto parts = laid_out<ScoresParts>(queue, call);
  prepare(call, parts.users, queue.stream());
  TwinParams params = params_of(call, parts.users);
  params.logits = out.logits;
  params.probs = out.probs;
  if (call.ids) {
    score_lists(call, params, out.score, parts.wrong, queue.stream());
  } else {
    score_stream(params, 0, call.requests, 0, call.count, out.score, call.count, queue.stream());
  }
}

void stream_topk(const TwinCall& call, const TopKOut& out, int64_t pass_bytes, Queue& queue) {
  const auto parts = laid_out<StreamParts>(queue, call, out.k, pass_bytes);
  prepare(call, parts.users, queue.stream());
  const TwinParams params = params_of(call, parts.users);
  const int64_t group = parts.passes.requests, k = out.k;
  for (int64_t first = 0; first < call.requests; first += group) {
    topk_of_group(call, params, parts.passes, first, std::min(group, call.requests - first), k, out.scores + first * k,
                  out.positions + first * k, queue.stream());
  }
}

void twin_topk(const TwinCall& call, const TopKOut& out, Queue& queue) {
  if (call.requests == 0) return;
  call.ids ? list_topk(call, out, queue) : stream_topk(call, out, kTwinPassBytes, queue);
}

void twin_rows(const Rows& vectors, int64_t count, int64_t tasks, int64_t width, Precision precision, void* rows,
               float* scales, Queue& queue) {
  round_rows(vectors, count, tasks, width, precision, rows, scales, queue.stream());
}

}  // namespace resflow::cuda
