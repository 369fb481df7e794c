#include "cuda/towers/tower_sm90.h"

#include <algorithm>

#include "core/precision.h"
#include "cuda/device/tensor_map.h"
#include "cuda/towers/tower_sm90_launch.h"

namespace resflow::cuda {
namespace {

using Launch = void (*)(const TowerSm90Params&, int64_t, int64_t, Stream);

template <Precision kPrecision, int kGroups>
constexpr Launch kByActivation[] = {
#define RESFLOW_ACTIVATION(name) launch<TowerSm90Kernel<kPrecision, Activation::name, kGroups>>,
#include "contract/enums.def"
};

Launch launch_of(const Plan& plan, int32_t groups) {
  const auto activation = static_cast<int>(plan.layer[0].activation);
  return with_precision<precision_flag::tensor_panels>(plan.precision, [&](auto p) -> Launch {
    if constexpr (has_tensor_panels(p.value)) {
      return groups == 1 ? kByActivation<p.value, 1>[activation] : kByActivation<p.value, kMostGroups>[activation];
    } else {
      return nullptr;  // covers_plan refuses it
    }
  });
}

int64_t item_columns(const Plan& plan, const Candidates& candidates) {
  return plan.in_features - candidates.user_columns;
}

TowerSchedule schedule_of(const Plan& plan, const Candidates& candidates, const Device& device, int32_t groups) {
  return tower_schedule(plan.tasks, plan.in_features, item_columns(plan, candidates), candidates.count, groups,
                        device.shared_bytes);
}

int64_t most_blocks(const Device& device) { return device.multiprocessors / kTowerCluster * kTowerCluster; }

// Small tiles, as long as all of them run at once: the call then takes the time of one tile.
TowerSchedule chosen_schedule(const TowerCall& call, const Device& device) {
  const TowerSchedule small = schedule_of(call.plan, call.candidates, device, 1);
  return small.tiles <= most_blocks(device) ? small : schedule_of(call.plan, call.candidates, device, kMostGroups);
}

// The stride of a single row is arbitrary, so it is replaced.
int64_t row_stride(const Rows& x, int64_t columns, int64_t count) { return count == 1 ? columns : x.stride; }

// The kernel keeps hidden outputs for residuals in registers from one task to the next only, so it takes chains.
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

// Whether the copy engine can read these rows.
bool covers_rows(const Rows& x, Precision precision, int64_t columns, int64_t count) {
  constexpr int64_t kMostStride = int64_t{1} << 39;
  const int64_t stride = row_stride(x, columns, count);
  if (!x.data || x.element != precision || columns < 1 || count > kMostRows) return false;
  if (stride < columns || stride >= kMostStride || stride * bytes_of(x.element) % 16 != 0) return false;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

}  // namespace

bool covered_by_tower_sm90(const Plan& plan, const Candidates& candidates, const Device& device) {
  if (device.capability != 90 || candidates.x.pooled() || candidates.ids) return false;
  if (candidates.requests > kMostRows) return false;
  return covers_plan(plan) &&
         covers_rows(candidates.x.rows, plan.precision, item_columns(plan, candidates), candidates.count) &&
         schedule_of(plan, candidates, device, kMostGroups).stages > 0;
}

void launch_tower_sm90(const TowerCall& call, const Device& device, Stream stream) {
  if (call.candidates.count == 0) return;
  const Rows& x = call.candidates.x.rows;
  const int64_t columns = item_columns(call.plan, call.candidates), count = call.candidates.count,
                element_bytes = bytes_of(x.element);
  const TowerSchedule schedule = chosen_schedule(call, device);
  const TensorMap map = make_tensor_map(x.data, columns, count, row_stride(x, columns, count) * element_bytes,
                                        static_cast<int>(element_bytes), kChunkInputs, schedule.rows());
  const Launch run = launch_of(call.plan, schedule.groups);
  run({map, call, schedule}, std::min<int64_t>(schedule.tiles, most_blocks(device)), schedule.bytes(), stream);
}

}  // namespace resflow::cuda
