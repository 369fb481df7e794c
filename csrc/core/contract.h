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

// Number of fusion weights per candidate: one per task, plus those that the fusion adds.
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

enum class Pooling : int64_t {
#define RESFLOW_POOLING(name) name,
#include "contract/enums.def"
  count
};

enum class Precision : int32_t {
#define RESFLOW_PRECISION(name, code, bytes, flags) name = code,
#include "contract/enums.def"
  count  // no precision; above all codes
};

// Tables by precision have an entry per row of the list, in its order.
constexpr bool precisions_are_in_order() {
  int place = 0;
  bool in_order = true;
#define RESFLOW_PRECISION(name, code, bytes, flags) in_order = in_order && code == place++;
#include "contract/enums.def"
  return in_order;
}
static_assert(precisions_are_in_order(), "contract/enums.def lists precisions by ascending codes, without a gap");

namespace precision_flag {
constexpr uint32_t on_cpu = 1, on_gpu = 2, in_rows = 4, in_gpu_rows = 8, in_tables = 16, column_scales = 32,
                   tensor_panels = 64;
}  // namespace precision_flag

// The flags of a precision; 0 for an unknown code.
constexpr uint32_t flags_of(Precision precision) {
  using namespace precision_flag;
  switch (precision) {
#define RESFLOW_PRECISION(name, code, bytes, flags) \
  case Precision::name:                             \
    return flags;
#include "contract/enums.def"
    case Precision::count:
      break;
  }
  return 0;
}

constexpr bool has(Precision precision, uint32_t flag) { return (flags_of(precision) & flag) != 0; }

constexpr int64_t bytes_of(Precision precision) {
  switch (precision) {
#define RESFLOW_PRECISION(name, code, bytes, flags) \
  case Precision::name:                             \
    return bytes;
#include "contract/enums.def"
    case Precision::count:
      break;
  }
  return 0;
}

// Packed weights are words of 32 bits.
constexpr int64_t inputs_per_word(Precision precision) { return 4 / bytes_of(precision); }

enum class Statistics : int32_t {
#define RESFLOW_STATISTICS(name) name,
#include "contract/enums.def"
  count
};

enum class PlanField : int32_t {
#define RESFLOW_PLAN_FIELD(name) name,
#include "contract/plan.def"
  count
};

namespace limit {
#define RESFLOW_PLAN_LIMIT(name, value) constexpr int64_t name = value;
#include "contract/plan.def"
}  // namespace limit

namespace packed {
#define RESFLOW_PACKED(name, value) constexpr int64_t name = value;
#define RESFLOW_PACKED_MAGIC(name, text) constexpr char name[] = text;
#include "contract/plan.def"
}  // namespace packed

}  // namespace resflow
