// torch.ops.resflow: the schemas (from contract/ops.def), for every backend to hang its implementations on.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(resflow, m) {
#define RESFLOW_OP(name, schema) m.def(#name schema);
#include "contract/ops.def"
}
