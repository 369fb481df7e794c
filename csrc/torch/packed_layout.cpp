// The ops of torch.ops.resflow that query a plan. They take no tensor, so one function serves every dispatch key.
#include "core/packed_layout.h"

#include <torch/csrc/stable/library.h>

namespace resflow::torch_ops {
namespace {

std::vector<int64_t> packed_layout(std::vector<int64_t> plan) { return resflow::packed_layout(plan); }

}  // namespace
}  // namespace resflow::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(resflow, m) {
#define RESFLOW_PLAN_OP(name, schema) m.def(#name schema);
#include "contract/ops.def"
}

STABLE_TORCH_LIBRARY_IMPL(resflow, CompositeExplicitAutograd, m) {
#define RESFLOW_PLAN_OP(name, schema) m.impl(#name, TORCH_BOX(&resflow::torch_ops::name));
#include "contract/ops.def"
}
