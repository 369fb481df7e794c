// A call of an op on GPU tensors: its device, stream and memory, and what the checks see of its tensors.
//
// With RESFLOW_EMULATED a device tensor is a CPU tensor, and the kernels run in the emulator.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/device/stream.h"
#include "torch/tensor.h"

#if defined(RESFLOW_EMULATED)
#include "emulator/memory.h"
#endif

namespace resflow::torch_ops {

#if defined(RESFLOW_EMULATED)
constexpr auto kDeviceType = torch::headeronly::DeviceType::CPU;
constexpr const char* kDeviceName = "cpu";
#else
constexpr auto kDeviceType = torch::headeronly::DeviceType::CUDA;
constexpr const char* kDeviceName = "cuda";
#endif

// RESFLOW_CHECK_IDS=1: values on the device (ids, offsets, the packed header) are read back and checked, as the CPU
// checks them, at the cost of a synchronisation. Else what they spoil is NaN.
inline bool checks_values() {
  static const bool asked = [] {
    const char* const text = std::getenv("RESFLOW_CHECK_IDS");
    return text && std::strcmp(text, "1") == 0;
  }();
  return asked;
}

class DeviceCall {
 public:
  DeviceCall(const char* op, const Tensor& first) : op_(op), index_(device_index(first)), guard_(index_) {}

  const char* op() const { return op_; }

  // What the checks see of a tensor of this call's device.
  TensorView view(const char* argument, const Tensor& tensor) {
    if (tensor.device().type() != kDeviceType || device_index(tensor) != index_) {
      complain(op_, argument, expected::device, "a tensor elsewhere",
               std::string(kDeviceName) + ":" + std::to_string(index_));
    }
    const auto sizes = tensor.sizes();
    TensorView view{tensor.const_data_ptr(), static_cast<int64_t>(sizes.size()), sizes.data(),
                    tensor.strides().data(), dtype_name(tensor.scalar_type()),   true};
    allow(view, tensor.element_size());
    return view;
  }

  std::vector<TensorView> views(const char* argument, const std::vector<Tensor>& tensors) {
    std::vector<TensorView> all;
    all.reserve(tensors.size());
    for (const Tensor& tensor : tensors) all.push_back(view(argument, tensor));
    return all;
  }

  // The same tensor for checks of its values: in the CPU's memory.
  TensorView on_host(const Tensor& tensor) {
    copies_.push_back(torch::stable::empty(tensor.sizes(), tensor.scalar_type()));
    torch::stable::copy_(copies_.back(), tensor);
    const Tensor& copy = copies_.back();
    return {copy.const_data_ptr(), copy.dim(), copy.sizes().data(), copy.strides().data(),
            dtype_name(copy.scalar_type())};
  }

  // A new tensor [rows] or [rows, columns].
  Tensor empty(ScalarType type, std::initializer_list<int64_t> sizes) {
    int64_t strides[2] = {1, 1};
    if (sizes.size() == 2) strides[0] = sizes.begin()[1];
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                                                    static_cast<int32_t>(type), static_cast<int32_t>(kDeviceType),
                                                    index_, &handle));
    Tensor tensor(handle);
#if defined(RESFLOW_EMULATED)
    buffers_.allow(tensor.mutable_data_ptr(), tensor.numel() * static_cast<int64_t>(tensor.element_size()), true);
    // Whatever a kernel leaves unwritten shows.
    std::memset(tensor.mutable_data_ptr(), 0xff, tensor.numel() * tensor.element_size());
#endif
    return tensor;
  }

  // Memory for the kernels of this call; it may be given to another once they are queued on the stream.
  void* workspace(int64_t bytes) {
    if (bytes == 0) return nullptr;
    workspaces_.push_back(empty(ScalarType::Byte, {bytes}));
    return workspaces_.back().mutable_data_ptr();
  }

  cuda::Stream stream() const {
#if defined(RESFLOW_EMULATED)
    return nullptr;
#else
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cuda::Stream>(stream);
#endif
  }

 private:
  static int32_t device_index(const Tensor& tensor) { return tensor.is_cpu() ? 0 : tensor.get_device_index(); }

#if defined(RESFLOW_EMULATED)
  struct NoGuard {
    explicit NoGuard(int32_t) {}
  };
  using Guard = NoGuard;

  void allow(const TensorView& view, size_t element_bytes) {
    int64_t last = 0;
    for (int64_t d = 0; d < view.dim; ++d) {
      if (view.sizes[d] == 0) return;
      last += (view.sizes[d] - 1) * view.strides[d];
    }
    buffers_.allow(view.data, (last + 1) * static_cast<int64_t>(element_bytes), false);
  }

  cuda::Buffers buffers_;
#else
  using Guard = torch::stable::accelerator::DeviceGuard;
  void allow(const TensorView&, size_t) {}
#endif

  const char* op_;
  int32_t index_;
  Guard guard_;
  std::vector<Tensor> copies_, workspaces_;
};

}  // namespace resflow::torch_ops
