// Between NumPy arrays and the views that core/check.h reads.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "core/tensor_view.h"
#include "cpu/threads/thread_pool.h"

namespace resflow::runtime {

namespace py = pybind11;

// A TensorView of a NumPy array: NumPy counts strides in bytes, a view in elements.
class View {
 public:
  View(const char* op, const char* argument, const py::array& array) : dtype_(py::str(array.dtype())) {
    const int64_t item = array.itemsize();
    for (py::ssize_t d = 0; d < array.ndim(); ++d) {
      sizes_.push_back(array.shape(d));
      if (item == 0 || array.strides(d) % item != 0) {
        complain(op, argument, expected::unit_stride, "a stride of " + std::to_string(array.strides(d)) + " bytes");
      }
      strides_.push_back(array.strides(d) / item);
    }
    data_ = array.data();
  }
  operator TensorView() const {
    return {data_, static_cast<int64_t>(sizes_.size()), sizes_.data(), strides_.data(), dtype_.c_str()};
  }
  // A table: NumPy has no bfloat16, its bits come as uint16.
  TensorView table() const {
    TensorView view = *this;
    if (dtype_ == "uint16") view.dtype = "bfloat16";
    return view;
  }

 private:
  std::string dtype_;
  std::vector<int64_t> sizes_, strides_;
  const void* data_;
};

inline int64_t thread_count(int64_t threads) { return threads > 0 ? threads : cpu::usable_cores(); }

// The twin tower functions (twin.cpp).
void define_twin(py::module_& m);

}  // namespace resflow::runtime
