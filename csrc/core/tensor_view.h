// The properties of a tensor that the checks read, whether torch or NumPy owns it. Strides are in elements.
#pragma once

#include <cstdint>
#include <string>

namespace resflow {

struct TensorView {
  const void* data;
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
  const char* dtype;       // NumPy's name: "float32", "int64", ...
  bool on_device = false;  // the call is on a GPU, which accepts other dtypes and precisions
  bool readable = true;    // false: in a GPU's memory, whose values the checks do not read

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  int64_t row_stride() const { return dim == 2 ? strides[0] : 0; }
};

// "[3, 576]"
std::string list_text(const int64_t* values, int64_t count);

}  // namespace resflow
