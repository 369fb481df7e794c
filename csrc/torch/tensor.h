// Between stable-ABI tensors and the views that core/check.h reads.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>

#include <vector>

#include "core/error.h"
#include "core/tensor_view.h"

namespace resflow::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(type);
  }
}

inline TensorView view_of(const char* op, const char* argument, const Tensor& tensor) {
  if (!tensor.is_cpu()) complain(op, argument, expected::device, "a tensor elsewhere", "cpu");
  const auto sizes = tensor.sizes();
  return {tensor.const_data_ptr(), static_cast<int64_t>(sizes.size()), sizes.data(), tensor.strides().data(),
          dtype_name(tensor.scalar_type())};
}

// A new CPU tensor [rows] or [rows, columns]. Straight through the C shim: new_empty would go through the
// dispatcher, three times a call.
inline Tensor empty(ScalarType type, std::initializer_list<int64_t> sizes) {
  int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = sizes.begin()[1];
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides, static_cast<int32_t>(type),
                               static_cast<int32_t>(torch::headeronly::DeviceType::CPU), 0, &handle));
  return Tensor(handle);
}

}  // namespace resflow::torch_ops
