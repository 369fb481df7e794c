#include "cuda/tower_sm90.h"

#include <algorithm>

#include "cuda/tensor_map.h"
#include "cuda/tower_sm90_launch.h"

namespace resflow::cuda {
namespace {

using Launch = void (*)(const TowerSm90Params&, int64_t, int64_t, Stream);

template <Precision kPrecision>
constexpr Launch kByActivation[] = {
#define RESFLOW_ACTIVATION(name) launch<TowerSm90Kernel<kPrecision, Activation::name>>,
#include "contract/enums.def"
};

int64_t item_columns(const TowerCall& call) { return call.plan.in_features - call.candidates.user_columns; }

TowerSchedule schedule_of(const TowerCall& call, const Device& device) {
  return tower_schedule(call.plan.tasks, call.plan.in_features, item_columns(call), call.candidates.count,
                        device.shared_bytes);
}

// Residuals of hidden outputs stay in registers from one task to the next, and no longer.
bool is_chain(const Plan& plan) {
  for (int32_t k = 0; k < plan.tasks; ++k) {
    if (plan.parents[k] != k - 1 && plan.parents[k] != -1) return false;
  }
  return true;
}

bool covers_plan(const Plan& plan) {
  if (plan.layers != 2 || !has_tensor_panels(plan.precision)) return false;
  for (int layer = 0; layer < 2; ++layer) {
    if (plan.layer[layer].width != tower_width(layer)) return false;
  }
  if (plan.layer[0].activation != plan.layer[1].activation) return false;
  if (plan.feature_residual && !is_chain(plan)) return false;
  return plan.logit_slots <= kLogitSlots;
}

// Rows as the copy engine reads them.
bool covers_rows(const Rows& x, Precision precision, int64_t columns, int64_t count) {
  if (!x.data || x.element != precision || columns < 1 || x.stride < columns || count > kMostRows) return false;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride * bytes_of(x.element) % 16 == 0;
}

}  // namespace

bool covered_by_tower_sm90(const TowerCall& call, const Device& device) {
  const Candidates& candidates = call.candidates;
  if (device.capability != 90 || candidates.x.pooled() || candidates.ids) return false;
  if (candidates.requests > kMostRows) return false;
  return covers_plan(call.plan) &&
         covers_rows(candidates.x.rows, call.plan.precision, item_columns(call), candidates.count) &&
         schedule_of(call, device).stages > 0;
}

void launch_tower_sm90(const TowerCall& call, const Device& device, Stream stream) {
  if (call.candidates.count == 0) return;
  const Rows& x = call.candidates.x.rows;
  const int64_t element_bytes = bytes_of(x.element);
  const TensorMap map =
      make_tensor_map(x.data, item_columns(call), call.candidates.count, x.stride * element_bytes,
                      static_cast<int>(element_bytes), static_cast<int>(kChunkInputs), static_cast<int>(kTowerRows));
  const TowerSm90Params params{map, call, schedule_of(call, device)};
  const Launch* const launches = call.plan.precision == Precision::bfloat16 ? kByActivation<Precision::bfloat16>
                                                                            : kByActivation<Precision::float16>;
  launches[static_cast<int>(call.plan.layer[0].activation)](
      params, std::min<int64_t>(params.schedule.tiles, device.multiprocessors / kTowerCluster * kTowerCluster),
      params.schedule.bytes(), stream);
}

}  // namespace resflow::cuda
