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
  const auto append = [&](const LayerLayout& layer) {
    numbers.insert(numbers.end(), {
#define RESFLOW_PACKED_LAYER_FIELD(name) layer.name,
#include "contract/plan.def"
                                  });
  };
  for (int32_t l = 0; l < plan.layers; ++l) append(plan.layer[l]);
  for (int64_t s = 0; plan.program && s < plan.program->step_count; ++s) append(plan.program->steps[s].layer);
  numbers.insert(numbers.end(), plan.slot, plan.slot + plan.tasks);
  return numbers;
}

}  // namespace resflow
