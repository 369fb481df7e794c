// torch.ops.resflow on CPU tensors.
#include <torch/csrc/stable/ops.h>

#include "cpu/towers/towers.h"
#include "cpu/twin/twin.h"
#include "torch/box.h"
#include "torch/training.h"

namespace resflow::torch_ops {
namespace {

// The CPU's policy for bindings/op.h.
struct CpuCall {
  using Tensor = OwnedTensor;
  using Output = torch_ops::Output;
  struct Unlocked {};

  static constexpr auto catalog_rows = cpu::catalog_rows;
  static constexpr auto program_outputs = cpu::program_outputs;
  static constexpr auto twin_rows = cpu::twin_rows;

  template <class... Arguments>
  explicit CpuCall(const char* op, const Arguments&...) : name(op) {}

  const char* op() const { return name; }
  TensorView view(std::string_view argument, const OwnedTensor& tensor) {
    return cpu_view(name, argument, tensor.get());
  }
  static constexpr bool rereads_values() { return false; }
  int64_t resources() const { return torch::stable::get_num_threads(); }

  template <class T>
  Output empty(std::initializer_list<int64_t> sizes) {
    return {kTypeOf<T>, sizes};
  }
  Output empty_table(Precision precision, std::initializer_list<int64_t> sizes) {
    return {table_type(precision), sizes};
  }
  Output pack(const Plan& plan, const bindings::Views& views, const std::vector<OwnedTensor>&) {
    Output packed = empty<uint8_t>({plan.packed_bytes});
    pack_towers(plan, views.data(), packed.data<void>());
    return packed;
  }

  const char* name;
};

}  // namespace
}  // namespace resflow::torch_ops

STABLE_TORCH_LIBRARY_IMPL(resflow, CPU, m) {
  using namespace resflow::torch_ops;
  namespace cpu = resflow::cpu;
  namespace ops = resflow::bindings::ops;
#define RESFLOW_FORM(form, model, inputs, topk_inputs, options, flags) \
  implement<ops::form##_scores<CpuCall, cpu::model##_scores>>(m);      \
  implement<ops::form##_topk<CpuCall, cpu::model##_topk>>(m);
#define RESFLOW_OP(name, schema) implement<ops::name<CpuCall>>(m);
#define RESFLOW_TRAINING_OP(name, schema) m.impl(#name, TORCH_BOX(&name));
#include "contract/ops.def"
}
