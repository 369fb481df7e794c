// Numbers about the bytes of packed weights for Python: those that contract/plan.def lists as RESFLOW_PACKED_FIELD and
// RESFLOW_PACKED_LAYER_FIELD. Python computes none of them itself.
#pragma once

#include <cstdint>
#include <vector>

namespace resflow {

// Throws InvalidInput for a plan that is not valid.
std::vector<int64_t> packed_layout(const std::vector<int64_t>& encoded);

}  // namespace resflow
