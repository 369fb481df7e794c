// One call of an op on GPU tensors: its device, stream and memory, and the views of its tensors for the checks.
//
// With RESFLOW_EMULATED a device tensor is a CPU tensor, and the kernels run in the emulator.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/towers/towers.h"
#include "cuda/twin/twin.h"
#include "torch/box.h"

#if defined(RESFLOW_EMULATED)
#include "emulator/memory.h"
#endif

namespace resflow::torch_ops {

#if defined(RESFLOW_EMULATED)
constexpr auto kDeviceType = DeviceType::CPU;
constexpr const char* kDeviceName = "cpu";
#else
constexpr auto kDeviceType = DeviceType::CUDA;
constexpr const char* kDeviceName = "cuda";
#endif

// With RESFLOW_CHECK_IDS=1, values on the device (ids, offsets, the packed header) are read back and checked, as on the
// CPU, at the cost of a synchronisation. Otherwise the outputs that bad values affect are NaN.
inline bool checks_values() {
  static const bool asked = [] {
    const char* const text = std::getenv("RESFLOW_CHECK_IDS");
    return text && std::strcmp(text, "1") == 0;
  }();
  return asked;
}

// The policy of GPU tensors for bindings/op.h.
class DeviceCall : public cuda::Queue {
 public:
  using Tensor = OwnedTensor;
  using Output = torch_ops::Output;
  struct Unlocked {};

  static constexpr auto catalog_rows = cuda::catalog_rows;
  static constexpr auto program_outputs = cuda::program_outputs;
  static constexpr auto twin_rows = cuda::twin_rows;

  // The call's device is that of its first tensor on a GPU.
  template <class... Arguments>
  explicit DeviceCall(const char* op, const Arguments&... arguments)
      : op_(op), index_(first_index(arguments...)), guard_(index_) {}

  const char* op() const { return op_; }

  // The checks' view of a tensor, which must be on this call's device.
  TensorView view(std::string_view argument, const OwnedTensor& tensor) {
    int32_t type = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    if (type != static_cast<int32_t>(kDeviceType) || device_index(tensor) != index_) {
      fail(op_, std::string(argument), expected::device, "a tensor elsewhere",
           std::string(kDeviceName) + ":" + std::to_string(index_));
    }
    TensorView view = view_of(tensor.get());
    view.on_device = true;
    view.readable = false;
    if (rereading_ && (std::strcmp(view.dtype, "int64") == 0 || std::strcmp(view.dtype, "uint8") == 0)) {
      view = on_host(tensor);
      view.on_device = true;
      return view;
    }
    allow(view, tensor);
    return view;
  }

  // After this call, views include the values of ids, offsets and packed weights.
  bool rereads_values() { return rereading_ = checks_values(); }

  template <class T>
  Output empty(std::initializer_list<int64_t> sizes) {
    return empty(kTypeOf<T>, sizes);
  }
  Output empty_table(Precision precision, std::initializer_list<int64_t> sizes) {
    return empty(table_type(precision), sizes);
  }

  // Packing runs on the CPU: weights are copied there and the result back, which synchronises.
  Output pack(const Plan& plan, const bindings::Views&, const std::vector<OwnedTensor>& weights) {
    bindings::Views views;
    for (const OwnedTensor& weight : weights) views.push_back(on_host(weight));
    const Output packed(ScalarType::Byte, {plan.packed_bytes});
    pack_towers(plan, views.data(), packed.data<void>());
    Output on_device = empty<uint8_t>({plan.packed_bytes});
    TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(on_device.get(), packed.get(), 0));
    return on_device;
  }

  cuda::Queue& resources() { return *this; }

  // The allocator may reuse the memory for another call once the kernels are queued on the stream.
  void* workspace(int64_t bytes) override {
    if (bytes == 0) return nullptr;
    workspaces_.push_back(empty<uint8_t>({bytes}));
    return workspaces_.back().data<void>();
  }

  cuda::Stream stream() const override {
#if defined(RESFLOW_EMULATED)
    return nullptr;
#else
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cuda::Stream>(stream);
#endif
  }

 private:
  static int32_t device_index(const OwnedTensor& tensor) {
    int32_t index = 0;
    if (!is_cpu(tensor.get())) TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
    return index;
  }

  static void find_index(int32_t& index, const OwnedTensor& tensor) {
    if (index < 0 && !is_cpu(tensor.get())) index = device_index(tensor);
  }
  static void find_index(int32_t& index, const std::vector<OwnedTensor>& tensors) {
    for (const OwnedTensor& tensor : tensors) find_index(index, tensor);
  }
  template <class Other>
  static void find_index(int32_t&, const Other&) {}

  template <class... Arguments>
  static int32_t first_index(const Arguments&... arguments) {
    int32_t index = -1;
    (find_index(index, arguments), ...);
    return std::max(index, 0);
  }

  // Returns a contiguous copy of the tensor in the CPU's memory.
  TensorView on_host(const OwnedTensor& tensor) {
    const TensorView view = view_of(tensor.get());
    std::vector<int64_t> strides(view.dim, 1);
    for (int64_t d = view.dim - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(view.sizes[d], 1);
    int32_t dtype = 0;
    AtenTensorHandle copy = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(view.dim, view.sizes, strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &copy));
    copies_.emplace_back(copy);
    TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(copy, tensor.get(), 0));
    return view_of(copy);
  }

  Output empty(ScalarType type, std::initializer_list<int64_t> sizes) {
    Output output(type, sizes, kDeviceType, index_);
#if defined(RESFLOW_EMULATED)
    int64_t bytes = 1;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(output.get(), &bytes));
    buffers_.allow(output.data<void>(), bytes, true);
    // Poison, so that values which a kernel does not write are noticed.
    std::memset(output.data<void>(), 0xff, bytes);
#endif
    return output;
  }

#if defined(RESFLOW_EMULATED)
  struct NoGuard {
    explicit NoGuard(int32_t) {}
  };
  using Guard = NoGuard;

  void allow(const TensorView& view, const OwnedTensor& tensor) {
    int64_t last = 0;
    for (int64_t d = 0; d < view.dim; ++d) {
      if (view.sizes[d] == 0) return;
      last += (view.sizes[d] - 1) * view.strides[d];
    }
    int32_t dtype = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    buffers_.allow(view.data, (last + 1) * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype)), false);
  }

  cuda::Buffers buffers_;
#else
  using Guard = torch::stable::accelerator::DeviceGuard;
  void allow(const TensorView&, const OwnedTensor&) {}
#endif

  const char* op_;
  int32_t index_;
  Guard guard_;
  bool rereading_ = false;
  std::vector<OwnedTensor> copies_;
  std::vector<Output> workspaces_;
};

}  // namespace resflow::torch_ops
