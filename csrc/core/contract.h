// The names and codes all backends share, expanded from resflow_kernels/contract/*.def.
#pragma once

#include <cstdint>

namespace resflow {

enum class Activation : int32_t {
#define RESFLOW_ACTIVATION(name) name,
#include "contract/enums.def"
  count
};

enum class Head : int32_t {
#define RESFLOW_HEAD(name) name,
#include "contract/enums.def"
  count
};

enum class Fusion : int32_t {
#define RESFLOW_FUSION(name, extra_weights) name,
#include "contract/enums.def"
  count
};

// How many fusion weights a candidate has: one per task, and those that the fusion's row adds.
constexpr int64_t fusion_weight_count(Fusion fusion, int64_t tasks) {
  constexpr int64_t kExtra[] = {
#define RESFLOW_FUSION(name, extra_weights) extra_weights,
#include "contract/enums.def"
  };
  return tasks + kExtra[static_cast<int32_t>(fusion)];
}

enum class WeightsPer : int32_t {
#define RESFLOW_WEIGHTS_PER(name) name,
#include "contract/enums.def"
  count
};

enum class Precision : int32_t {
#define RESFLOW_PRECISION(name) name,
#define RESFLOW_GPU_PRECISION(name)
#include "contract/enums.def"
#define RESFLOW_PRECISION(name)
#define RESFLOW_GPU_PRECISION(name) name,
#include "contract/enums.def"
  count
};

// The first precisions are those of every device, and of tables.
constexpr int64_t kTableElements = 0
#define RESFLOW_PRECISION(name) +1
#include "contract/enums.def"
    ;

enum class Statistics : int32_t {
#define RESFLOW_STATISTICS(name) name,
#include "contract/enums.def"
  count
};

enum class PlanField : int32_t {
#define RESFLOW_PLAN_FIELD(name) name,
#define RESFLOW_PLAN_LIMIT(name, value)
#include "contract/plan.def"
#undef RESFLOW_PLAN_FIELD
#undef RESFLOW_PLAN_LIMIT
  count
};

namespace limit {
#define RESFLOW_PLAN_FIELD(name)
#define RESFLOW_PLAN_LIMIT(name, value) constexpr int64_t name = value;
#include "contract/plan.def"
#undef RESFLOW_PLAN_FIELD
#undef RESFLOW_PLAN_LIMIT
}  // namespace limit

}  // namespace resflow
