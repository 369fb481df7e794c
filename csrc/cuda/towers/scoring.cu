#include "cuda/towers/scoring.h"

#include "core/check.h"
#include "cuda/towers/tower_launch.h"
#include "cuda/towers/tower_sm90_launch.h"

namespace resflow::cuda {

extern template struct TowerLaunch<Precision::float32>;
extern template struct TowerLaunch<Precision::bfloat16>;
extern template struct TowerLaunch<Precision::float16>;
extern template struct TowerLaunch<Precision::tensorfloat32>;

namespace {

// Features to device memory, through a kernel's parameters: a copy from the host's memory could not be captured in a
// CUDA graph.
struct StoreFeatures {
  static constexpr int kMost = 32;
  struct Params {
    Feature features[kMost];
    int64_t count;
    Feature* to;
  };
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "store_features";

  static RESFLOW_DEVICE void run(const Params& params, char*) {
    const auto* const from = reinterpret_cast<const uint64_t*>(params.features);
    auto* const to = reinterpret_cast<uint64_t*>(params.to);
    const int64_t words = params.count * static_cast<int64_t>(sizeof(Feature) / sizeof(uint64_t));
    for (int64_t at = thread_index(); at < words; at += kThreads) store_global(to + at, from[at]);
  }
};

int64_t feature_bytes(const Features& features) { return features.count * static_cast<int64_t>(sizeof(Feature)); }

// Puts features into the workspace, and their address there into `features`.
void store_features(Features& features, char* workspace, Stream stream) {
  for (int64_t first = 0; first < features.count; first += StoreFeatures::kMost) {
    const int64_t left = features.count - first;
    StoreFeatures::Params params{};
    params.count = left < StoreFeatures::kMost ? left : StoreFeatures::kMost;
    for (int64_t at = 0; at < params.count; ++at) params.features[at] = features.all[first + at];
    params.to = reinterpret_cast<Feature*>(workspace) + first;
    launch<StoreFeatures>(params, 1, 0, stream);
  }
  features.all = reinterpret_cast<const Feature*>(workspace);
}

void run_project(const Model& model, const Source& source, int64_t count, const ProjectChoice& choice, bool with_bias,
                 float* out, char* tile_memory, Stream stream) {
  const ProjectParams params{
      model.plan,    model.packed, source,       count, choice.first,
      choice.stride, with_bias,    choice.parts, out,   choice.tile_memory_bytes > 0 ? tile_memory : nullptr};
  in_gpu_precision(model.plan.precision,
                   [&]<Precision kPrecision>() { TowerLaunch<kPrecision>::project(params, choice.blocks, stream); });
}

}  // namespace

class Scoring::Launches {
 public:
  Launches(const Model& model, const Candidates& candidates, const FusionWeights& weights);

  int64_t workspace_bytes() const { return parts_.bytes(); }
  const char* kernel() const { return hopper_ ? "tower_sm90" : splits_ ? "tower_split" : "tower"; }
  void run(const Outputs& outputs, void* workspace, Stream stream) const;

 private:
  int64_t start_bytes() const;
  void choose_split(const FirstLayer& first, const Device& device);
  void choose_towers(int64_t columns, const Device& device);
  void project_users(const TowerCall& call, char* workspace, Stream stream) const;
  void run_split(const TowerCall& call, char* workspace, Stream stream) const;
  void run_towers(const TowerCall& call, char* workspace, Stream stream) const;

  TowerCall call_{};
  bool has_user_ = false;
  bool hopper_ = false;
  bool splits_ = false;
  SplitParams split_{};
  ProjectChoice project_{};
  TowerChoice tower_{};

  WorkspaceParts parts_;
  int64_t features_ = 0, user_features_ = 0, starts_ = 0, projected_ = 0, counters_ = 0, hidden_ = 0, tiles_ = 0;
};

Scoring::Launches::Launches(const Model& model, const Candidates& candidates, const FusionWeights& weights) {
  const Device& device = current_device();
  call_.plan = model.plan;
  call_.packed = model.packed;
  call_.candidates = candidates;
  call_.fusion = weights;
  call_.fusion_weight_count = fusion_weight_count(weights.fusion, model.plan.tasks);
  has_user_ = candidates.user.exists();
  features_ = parts_.take(feature_bytes(candidates.x.features));
  user_features_ = parts_.take(feature_bytes(candidates.user.features));
  starts_ = parts_.take(start_bytes());
  const int64_t columns = candidates.ids ? 0 : model.plan.in_features - candidates.user_columns;
  // Not by the batch's size: its bits are its own.
  hopper_ = covered_by_tower_sm90(call_, device);
  if (!hopper_)
    choose_split(FirstLayer::of(candidates.user_columns, columns, inputs_per_word(model.plan.precision)), device);
  if (!splits_) choose_towers(columns, device);
}

int64_t Scoring::Launches::start_bytes() const {
  return has_user_ ? 4 * call_.candidates.requests * call_.plan.tasks * call_.plan.first_padded() : 0;
}

void Scoring::Launches::choose_split(const FirstLayer& first, const Device& device) {
  const Candidates& candidates = call_.candidates;
  split_.call.plan = call_.plan;
  split_.first = first;
  split_.user_first = FirstLayer::of(0, has_user_ ? candidates.user_columns : 0, inputs_per_word(call_.plan.precision));
  split_.operand_stride = widest_operand(call_.plan, first, split_.user_first);
  split_.tiles = (candidates.count + kSplitRows - 1) / kSplitRows;
  split_.user_tiles = has_user_ ? (candidates.requests + kSplitRows - 1) / kSplitRows : 0;
  splits_ = kSplitTilesPerMultiprocessor * (split_.tiles + split_.user_tiles) <= device.multiprocessors &&
            split_.shared_bytes() <= device.shared_bytes;
  if (!splits_) return;
  counters_ = parts_.take(4 * split_.counter_count());
  hidden_ = parts_.take(4 * split_.hidden_offset(call_.plan.layers));
}

void Scoring::Launches::choose_towers(int64_t columns, const Device& device) {
  const Candidates& candidates = call_.candidates;
  if (has_user_) {
    project_ = choose_project(call_.plan, 0, candidates.user_columns, candidates.requests, device);
    projected_ = parts_.take(project_.tile_memory_bytes);
  }
  if (hopper_) return;
  tower_ = choose_tower(call_.plan, candidates.user_columns, columns, candidates.count, device);
  tiles_ = parts_.take(tower_.tile_memory_bytes);
}

void Scoring::Launches::run(const Outputs& outputs, void* workspace, Stream stream) const {
  if (call_.candidates.count == 0) return;
  char* const memory = static_cast<char*>(workspace);
  TowerCall call = call_;
  call.logits = outputs.logits;
  call.probs = outputs.probs;
  call.score = outputs.score;
  store_features(call.candidates.x.features, memory + features_, stream);
  store_features(call.candidates.user.features, memory + user_features_, stream);
  if (has_user_) call.starts = reinterpret_cast<const float*>(memory + starts_);
  if (splits_) return run_split(call, memory, stream);
  if (has_user_) project_users(call, memory, stream);
  if (hopper_) return launch_tower_sm90(call, current_device(), stream);
  run_towers(call, memory, stream);
}

void Scoring::Launches::project_users(const TowerCall& call, char* workspace, Stream stream) const {
  run_project({call.plan, call.packed}, call.candidates.user, call.candidates.requests, project_, true,
              reinterpret_cast<float*>(workspace + starts_), workspace + projected_, stream);
}

void Scoring::Launches::run_split(const TowerCall& call, char* workspace, Stream stream) const {
  SplitParams params = split_;
  params.call = call;
  params.counters = reinterpret_cast<int32_t*>(workspace + counters_);
  params.starts = reinterpret_cast<float*>(workspace + starts_);
  params.hidden = reinterpret_cast<float*>(workspace + hidden_);
  set_zero(params.counters, 4 * params.counter_count(), stream);
  in_gpu_precision(call.plan.precision,
                   [&]<Precision kPrecision>() { TowerLaunch<kPrecision>::split(params, stream); });
}

void Scoring::Launches::run_towers(const TowerCall& call, char* workspace, Stream stream) const {
  const TowerParams params{call, tower_.shape, workspace + tiles_};
  in_gpu_precision(call.plan.precision,
                   [&]<Precision kPrecision>() { TowerLaunch<kPrecision>::tower(params, tower_, stream); });
}

Scoring::Scoring(const Model& model, const Candidates& candidates, const FusionWeights& weights)
    : launches_(std::make_unique<const Launches>(model, candidates, weights)) {}
Scoring::~Scoring() = default;

int64_t Scoring::workspace_bytes() const { return launches_->workspace_bytes(); }
const char* Scoring::kernel() const { return launches_->kernel(); }
void Scoring::run(const Outputs& outputs, void* workspace, Stream stream) const {
  launches_->run(outputs, workspace, stream);
}

int64_t project_items_workspace_bytes(const Plan& plan, int64_t count, int64_t item_columns) {
  return choose_project(plan, plan.in_features - item_columns, item_columns, count, current_device()).tile_memory_bytes;
}

void project_items(const Model& model, const Rows& item, int64_t count, int64_t item_columns, float* out,
                   void* workspace, Stream stream) {
  const ProjectChoice choice =
      choose_project(model.plan, model.plan.in_features - item_columns, item_columns, count, current_device());
  run_project(model, {item, {}}, count, choice, false, out, static_cast<char*>(workspace), stream);
}

}  // namespace resflow::cuda
