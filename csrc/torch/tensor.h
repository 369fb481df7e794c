// Converts stable-ABI tensors to the views that core/check.h reads.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "core/error.h"
#include "core/tensor_view.h"

namespace resflow::torch_ops {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* dtype_name(int32_t code) {
  struct Name {
    int32_t code;
    const char* name;
  };
  // The most common dtypes come first.
  static const Name names[] = {{aoti_torch_dtype_float32(), "float32"}, {aoti_torch_dtype_uint8(), "uint8"},
                               {aoti_torch_dtype_int64(), "int64"},     {aoti_torch_dtype_bfloat16(), "bfloat16"},
                               {aoti_torch_dtype_int8(), "int8"},       {aoti_torch_dtype_float16(), "float16"},
                               {aoti_torch_dtype_float64(), "float64"}, {aoti_torch_dtype_int32(), "int32"},
                               {aoti_torch_dtype_int16(), "int16"},     {aoti_torch_dtype_bool(), "bool"}};
  for (const Name& each : names) {
    if (each.code == code) return each.name;
  }
  return torch::headeronly::toString(torch::stable::detail::to<ScalarType>(torch::stable::detail::from(code)));
}

// The checks' view of a tensor on any device.
inline TensorView view_of(AtenTensorHandle tensor) {
  TensorView view{};
  int64_t *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &view.data));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &view.dim));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  view.sizes = sizes;
  view.strides = strides;
  view.dtype = dtype_name(dtype);
  return view;
}

inline bool is_cpu(AtenTensorHandle tensor) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &type));
  return type == aoti_torch_device_type_cpu();
}

inline TensorView cpu_view(const char* op, std::string_view argument, AtenTensorHandle tensor) {
  if (!is_cpu(tensor)) fail(op, std::string(argument), expected::device, "a tensor elsewhere", "cpu");
  return view_of(tensor);
}

// Returns a new tensor [rows] or [rows, columns]. It calls the C shim directly: new_empty would go through the
// dispatcher three times per call.
inline AtenTensorHandle new_tensor(ScalarType type, std::initializer_list<int64_t> sizes,
                                   DeviceType device = DeviceType::CPU, int32_t index = 0) {
  int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = sizes.begin()[1];
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                                                  static_cast<int32_t>(type), static_cast<int32_t>(device), index,
                                                  &handle));
  return handle;
}

}  // namespace resflow::torch_ops
