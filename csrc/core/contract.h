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
#define RESFLOW_FUSION(name) name,
#include "contract/enums.def"
  count
};

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
