// What the checks need to know of a tensor, whoever owns it (torch or NumPy). Strides are in elements.
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
  bool on_device = false;  // of a call on a GPU, which takes other dtypes and precisions
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
