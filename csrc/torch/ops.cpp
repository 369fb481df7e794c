// Defines torch.ops.resflow: the schemas of contract/ops.def, for which each backend registers its implementations.
#include <torch/csrc/stable/library.h>

#include "bindings/schema.h"

STABLE_TORCH_LIBRARY(resflow, m) {
  namespace schemas = resflow::bindings::schemas;
#define RESFLOW_FORM(form, model, inputs, topk_inputs, options, flags) \
  m.def(schemas::form##_scores.characters);                            \
  m.def(schemas::form##_topk.characters);
#define RESFLOW_OP(name, schema) m.def(schemas::name.characters);
#define RESFLOW_TRAINING_OP(name, schema) m.def(schemas::name.characters);
#include "contract/ops.def"
}
