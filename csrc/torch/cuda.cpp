// torch.ops.resflow on GPU tensors; with RESFLOW_EMULATED torch.ops.resflow_emulated, beside the real ops, which CPU
// tensors have already.
#include "core/pack.h"
#include "cuda/towers/towers.h"
#include "cuda/twin/twin.h"
#include "torch/cuda_call.h"

namespace resflow::torch_ops {
namespace {

// See bindings/op.h.
class CudaCall : public DeviceCall {
 public:
  using Tensor = OwnedTensor;
  using Tensors = std::vector<OwnedTensor>;
  using Output = torch_ops::Output;
  struct Unlocked {};

  static constexpr auto towers_scores = cuda::towers_scores;
  static constexpr auto towers_topk = cuda::towers_topk;
  static constexpr auto twin_scores = cuda::twin_scores;
  static constexpr auto twin_topk = cuda::twin_topk;
  static constexpr auto catalog_rows = cuda::catalog_rows;
  static constexpr auto twin_rows = cuda::twin_rows;

  using DeviceCall::DeviceCall;

  cuda::Queue& resources() { return *this; }

  // Packing is the CPU's: weights are copied there and the result back, which synchronises.
  Output pack(const Plan& plan, const Tensors& weights) {
    bindings::Views views;
    for (const OwnedTensor& weight : weights) views.push_back(on_host(weight));
    const Output packed(ScalarType::Byte, {plan.packed_bytes});
    pack_towers(plan, views.data(), packed.data<void>());
    Output on_device = empty<uint8_t>({plan.packed_bytes});
    TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(on_device.get(), packed.get(), 0));
    return on_device;
  }
};

}  // namespace
}  // namespace resflow::torch_ops

#if defined(RESFLOW_EMULATED)
STABLE_TORCH_LIBRARY(resflow_emulated, m) {
  namespace schemas = resflow::bindings::schemas;
  using resflow::bindings::Text;
#define RESFLOW_FORM(form, model, inputs, topk_inputs, flags)         \
  m.def((Text(#form "_scores") + schemas::form##_scores).characters); \
  m.def((Text(#form "_topk") + schemas::form##_topk).characters);
#define RESFLOW_OP(name, schema) m.def(#name schema);
#include "contract/ops.def"
}
STABLE_TORCH_LIBRARY_IMPL(resflow_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(resflow, CUDA, m) {
#endif
  using namespace resflow::torch_ops;
  namespace ops = resflow::bindings::ops;
#define RESFLOW_FORM(form, model, inputs, topk_inputs, flags) \
  implement<ops::form##_scores<CudaCall>>(m);                 \
  implement<ops::form##_topk<CudaCall>>(m);
#define RESFLOW_OP(name, schema) implement<ops::name<CudaCall>>(m);
#include "contract/ops.def"
}
