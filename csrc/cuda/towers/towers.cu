#include "cuda/towers/towers.h"

#include <algorithm>

#include "core/check.h"
#include "core/precision.h"
#include "cuda/topk/topk.h"
#include "cuda/towers/programs.h"
#include "cuda/towers/rows.h"
#include "cuda/towers/tower_launch.h"
#include "cuda/towers/tower_sm90_launch.h"
#include "cuda/towers/workspace.h"

namespace resflow::cuda {

extern template struct TowerLaunch<Precision::float32>;
extern template struct TowerLaunch<Precision::bfloat16>;
extern template struct TowerLaunch<Precision::float16>;
extern template struct TowerLaunch<Precision::tensorfloat32>;

namespace {

TowerCall tower_call(const ScoringCall& call, const ScoresOut& out) {
  const auto& [model, candidates, weights] = call;
  return {model.plan, model.packed, candidates, weights,  fusion_weight_count(weights.fusion, model.plan.tasks),
          nullptr,    out.logits,   out.probs,  out.score};
}

// Number of columns in a candidate's own row.
int64_t item_columns(const ScoringCall& call) {
  return call.candidates.ids ? 0 : call.model.plan.in_features - call.candidates.user_columns;
}

int64_t user_columns(const ScoringCall& call) {
  return call.candidates.user.exists() ? call.candidates.user_columns : 0;
}

// The parts of the workspace that every scoring kernel reads.
class CommonParts {
 public:
  explicit CommonParts(const ScoringCall& call)
      : features_(call.candidates, parts),
        has_user_(call.candidates.user.exists()),
        accum_init_(
            parts.take(has_user_ ? 4 * call.candidates.requests * call.tasks() * call.model.plan.first_padded() : 0)) {}

  float* accum_init(char* memory) const { return reinterpret_cast<float*>(memory + accum_init_); }

  // Copies the features and stores the addresses of the parts in `call`.
  void place(TowerCall& call, char* memory, Stream stream) const {
    features_.place(call.candidates, memory, stream);
    if (has_user_) call.accum_init = accum_init(memory);
  }

  WorkspaceParts parts;

 private:
  FeatureParts features_;
  bool has_user_;
  int64_t accum_init_;
};

void project(const Model& model, const Source& source, int64_t count, const ProjectChoice& choice, bool with_bias,
             float* out, char* tile_memory, Stream stream) {
  const bool in_shared = choice.tile_memory_bytes == 0;
  const ProjectParams params{model.plan,    model.packed, source,       count, choice.first,
                             choice.stride, with_bias,    choice.parts, out,   in_shared ? nullptr : tile_memory};
  const auto launch = with_precision<precision_flag::on_gpu>(
      model.plan.precision, [&](auto p) { return TowerLaunch<p.value>::kProject[in_shared]; });
  launch(params, choice.blocks, choice.shared_bytes, stream);
}

// Parameters of the kernel for batches that would leave most of the SMs idle.
SplitParams split_params(const ScoringCall& call, const ScoresOut& out) {
  const int64_t per_word = inputs_per_word(call.model.plan.precision);
  SplitParams params{};
  params.call = tower_call(call, out);
  params.first = FirstLayer::of(call.candidates.user_columns, item_columns(call), per_word);
  params.user_first = FirstLayer::of(0, user_columns(call), per_word);
  params.operand_stride = widest_operand(call.model.plan, params.first, params.user_first);
  params.tiles = split_tiles(call.candidates.count);
  params.user_tiles = call.candidates.user.exists() ? split_tiles(call.candidates.requests) : 0;
  return params;
}

void run_split(const ScoringCall& call, SplitParams& params, Queue& queue) {
  CommonParts common(call);
  const int64_t counters = common.parts.take(4 * params.counter_count());
  const int64_t hidden = common.parts.take(4 * params.hidden_offset(call.model.plan.layers));
  char* const memory = static_cast<char*>(queue.workspace(common.parts.bytes()));
  common.place(params.call, memory, queue.stream());
  params.counters = reinterpret_cast<int32_t*>(memory + counters);
  params.accum_init = common.accum_init(memory);
  params.hidden = reinterpret_cast<float*>(memory + hidden);
  set_zero(params.counters, 4 * params.counter_count(), queue.stream());
  const auto launch = with_precision<precision_flag::on_gpu>(call.model.plan.precision,
                                                             [&](auto p) { return TowerLaunch<p.value>::kSplit; });
  launch(params, params.jobs(), params.shared_bytes(), queue.stream());
}

// Launches the kernels for all other batches: at most two, the users' projections and the towers.
void run_towers(const ScoringCall& call, const ScoresOut& out, bool hopper, const Device& device, Queue& queue) {
  const auto& [model, candidates, weights] = call;
  const TowerChoice choice =
      hopper ? TowerChoice{}
             : choose_tower(model.plan, candidates.user_columns, item_columns(call), candidates.count, device);
  const ProjectChoice projection =
      candidates.user.exists() ? choose_project(model.plan, 0, candidates.user_columns, candidates.requests, device)
                               : ProjectChoice{};
  CommonParts common(call);
  const int64_t projected = common.parts.take(projection.tile_memory_bytes);
  const int64_t tiles = common.parts.take(choice.tile_memory_bytes);
  char* const memory = static_cast<char*>(queue.workspace(common.parts.bytes()));
  TowerParams params{tower_call(call, out), choice.shape, memory + tiles};
  common.place(params.call, memory, queue.stream());
  if (candidates.user.exists()) {
    project(model, params.call.candidates.user, candidates.requests, projection, true, common.accum_init(memory),
            memory + projected, queue.stream());
  }
  if (hopper) return launch_tower_sm90(params.call, device, queue.stream());
  const auto launch = with_precision<precision_flag::on_gpu>(
      model.plan.precision, [&](auto p) { return TowerLaunch<p.value>::kTower[choice.variant]; });
  launch(params, choice.blocks, choice.shared_bytes, queue.stream());
}

// Whether a batch is small enough for the split kernel, by its tiles.
bool is_small(const ScoringCall& call, const Device& device) {
  const int64_t users = call.candidates.user.exists() ? split_tiles(call.candidates.requests) : 0;
  return kSplitTilesPerMultiprocessor * (split_tiles(call.candidates.count) + users) <= device.multiprocessors;
}

}  // namespace

void towers_scores(const ScoringCall& call, const ScoresOut& out, Queue& queue) {
  if (call.scored() == 0) return;
  if (call.model.plan.program) return program_scores(call, out, queue);
  const Device& device = current_device();
  // The Hopper kernel's results are not bitwise those of the others, so this choice must not depend on the batch's
  // size.
  const bool hopper = covered_by_tower_sm90(call.model.plan, call.candidates, device);
  if (!hopper && is_small(call, device)) {
    SplitParams params = split_params(call, out);
    if (params.shared_bytes() <= device.shared_bytes) return run_split(call, params, queue);
  }
  run_towers(call, out, hopper, device, queue);
}

void towers_topk(const ScoringCall& call, const TopKOut& out, Queue& queue) {
  auto* const score = static_cast<float*>(queue.workspace(4 * call.scored()));
  towers_scores(call, {nullptr, nullptr, score}, queue);
  const auto& [k, scores, positions] = out;
  const int64_t requests = call.candidates.requests;
  void* const workspace = queue.workspace(topk_workspace_bytes(requests, call.scored(), k));
  topk(score, call.candidates.offsets, requests, call.scored(), k, scores, positions, workspace, queue.stream());
}

void catalog_rows(const Model& model, const Rows& item, int64_t count, int64_t item_columns, Precision precision,
                  void* rows, float* scales, Queue& queue) {
  const Device& device = current_device();
  const int64_t width = model.plan.tasks * model.plan.first_padded(),
                first_input = model.plan.in_features - item_columns;
  // Items are processed in parts whose float32 products take at most 64 MiB.
  const int64_t at_once = std::max<int64_t>(1, (int64_t(64) << 20) / (4 * width)), most = std::min(count, at_once);
  auto* const products = static_cast<float*>(queue.workspace(4 * most * width));
  auto* const tile_memory = static_cast<char*>(
      queue.workspace(choose_project(model.plan, first_input, item_columns, most, device).tile_memory_bytes));
  for (int64_t first = 0; first < count; first += at_once) {
    const int64_t some = std::min(at_once, count - first);
    const ProjectChoice choice = choose_project(model.plan, first_input, item_columns, some, device);
    project(model, {item.from(first), {}}, some, choice, false, products, tile_memory, queue.stream());
    char* const to = static_cast<char*>(rows) + first * width * bytes_of(precision);
    float* const to_scales = precision == Precision::int8 ? scales + first : nullptr;
    round_rows({products, Precision::float32, width}, some, 1, width, precision, to, to_scales, queue.stream());
  }
}

}  // namespace resflow::cuda
