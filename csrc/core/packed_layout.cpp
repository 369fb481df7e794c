#include "core/packed_layout.h"

#include "core/decode_program.h"

namespace resflow {

std::vector<int64_t> packed_layout(const std::vector<int64_t>& encoded) {
  ProgramStorage storage;
  const Plan plan = decode_plan("packed_layout", encoded.data(), static_cast<int64_t>(encoded.size()), &storage);
  std::vector<int64_t> numbers = {
#define RESFLOW_PACKED_FIELD(name) static_cast<int64_t>(plan.name),
#include "contract/plan.def"
  };
  for (int32_t l = 0; l < plan.layers; ++l) {
    const LayerLayout& layer = plan.layer[l];
    numbers.insert(numbers.end(), {
#define RESFLOW_PACKED_LAYER_FIELD(name) layer.name,
#include "contract/plan.def"
                                  });
  }
  numbers.insert(numbers.end(), plan.slot, plan.slot + plan.tasks);
  return numbers;
}

}  // namespace resflow
