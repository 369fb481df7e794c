// torch.ops.resflow on GPU tensors. With RESFLOW_EMULATED the ops are torch.ops.resflow_emulated, because the kernels
// for CPU tensors are already registered for torch.ops.resflow.
#include "torch/cuda_call.h"

#if defined(RESFLOW_EMULATED)
STABLE_TORCH_LIBRARY(resflow_emulated, m) {
  namespace schemas = resflow::bindings::schemas;
#define RESFLOW_FORM(form, model, inputs, topk_inputs, options, flags) \
  m.def(schemas::form##_scores.characters);                            \
  m.def(schemas::form##_topk.characters);
#define RESFLOW_OP(name, schema) m.def(schemas::name.characters);
#include "contract/ops.def"
}
STABLE_TORCH_LIBRARY_IMPL(resflow_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(resflow, CUDA, m) {
#endif
  using namespace resflow::torch_ops;
  namespace cuda = resflow::cuda;
  namespace ops = resflow::bindings::ops;
#define RESFLOW_FORM(form, model, inputs, topk_inputs, options, flags) \
  implement<ops::form##_scores<DeviceCall, cuda::model##_scores>>(m);  \
  implement<ops::form##_topk<DeviceCall, cuda::model##_topk>>(m);
#define RESFLOW_OP(name, schema) implement<ops::name<DeviceCall>>(m);
#include "contract/ops.def"
}
