// torch.ops.resflow on CPU tensors.
#include <torch/csrc/stable/ops.h>

#include "core/pack.h"
#include "cpu/towers/towers.h"
#include "cpu/twin/twin.h"
#include "torch/box.h"
#include "torch/training.h"

namespace resflow::torch_ops {
namespace {

// See bindings/op.h.
class CpuCall {
 public:
  using Tensor = OwnedTensor;
  using Tensors = std::vector<OwnedTensor>;
  using Output = torch_ops::Output;
  struct Unlocked {};

  static constexpr auto towers_scores = cpu::towers_scores;
  static constexpr auto towers_topk = cpu::towers_topk;
  static constexpr auto twin_scores = cpu::twin_scores;
  static constexpr auto twin_topk = cpu::twin_topk;
  static constexpr auto catalog_rows = cpu::catalog_rows;
  static constexpr auto twin_rows = cpu::twin_rows;

  template <class... Arguments>
  explicit CpuCall(const char* op, const Arguments&...) : op_(op) {}

  const char* op() const { return op_; }
  TensorView view(std::string_view argument, const OwnedTensor& tensor) {
    return cpu_view(op_, argument, tensor.get());
  }
  static constexpr bool rereads_values() { return false; }
  int64_t resources() const { return torch::stable::get_num_threads(); }

  template <class T>
  Output empty(std::initializer_list<int64_t> sizes) {
    return Output(kTypeOf<T>, sizes);
  }
  Output empty_table(Precision precision, std::initializer_list<int64_t> sizes) {
    return Output(table_type(precision), sizes);
  }
  Output pack(const Plan& plan, const Tensors& weights) {
    Output packed = empty<uint8_t>({plan.packed_bytes});
    pack_towers(plan, bindings::input_of(*this, "weights", weights).data(), packed.data<void>());
    return packed;
  }

 private:
  const char* op_;
};

}  // namespace
}  // namespace resflow::torch_ops

STABLE_TORCH_LIBRARY_IMPL(resflow, CPU, m) {
  using namespace resflow::torch_ops;
  namespace ops = resflow::bindings::ops;
#define RESFLOW_FORM(form, model, inputs, topk_inputs, flags) \
  implement<ops::form##_scores<CpuCall>>(m);                  \
  implement<ops::form##_topk<CpuCall>>(m);
#define RESFLOW_OP(name, schema) implement<ops::name<CpuCall>>(m);
#define RESFLOW_TRAINING_OP(name, schema) m.impl(#name, TORCH_BOX(&name));
#include "contract/ops.def"
}
