// Ops on NumPy arrays: see csrc/bindings/op.h.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <deque>
#include <iterator>
#include <string>
#include <vector>

#include "bindings/op.h"
#include "core/error.h"
#include "core/pack.h"
#include "cpu/threads/thread_pool.h"
#include "cpu/towers/towers.h"
#include "cpu/twin/twin.h"

namespace resflow::runtime {

namespace py = pybind11;

inline int64_t thread_count(int64_t threads) { return threads > 0 ? threads : cpu::usable_cores(); }

// An op's result.
struct Output {
  py::array array;

  template <class T>
  T* data() {
    return static_cast<T*>(array.mutable_data());
  }
};

class NumpyCall {
 public:
  using Tensor = py::array;
  using Tensors = std::vector<py::array>;
  using Output = runtime::Output;
  using Unlocked = py::gil_scoped_release;

  static constexpr auto towers_scores = cpu::towers_scores;
  static constexpr auto towers_topk = cpu::towers_topk;
  static constexpr auto twin_scores = cpu::twin_scores;
  static constexpr auto twin_topk = cpu::twin_topk;
  static constexpr auto catalog_rows = cpu::catalog_rows;
  static constexpr auto twin_rows = cpu::twin_rows;

  NumpyCall(const char* op, int64_t threads) : op_(op), threads_(threads) {}

  const char* op() const { return op_; }
  static constexpr bool rereads_values() { return false; }
  int64_t resources() const { return thread_count(threads_); }

  // NumPy counts strides in bytes, a view in elements; and it has no bfloat16: a table's bits come as uint16.
  TensorView view(std::string_view argument, const py::array& array) {
    Shape& shape = shapes_.emplace_back();
    shape.dtype = py::str(array.dtype());
    if (argument.starts_with("table") && shape.dtype == "uint16") shape.dtype = "bfloat16";
    const int64_t item = array.itemsize();
    for (py::ssize_t d = 0; d < array.ndim(); ++d) {
      if (item == 0 || array.strides(d) % item != 0) {
        fail(op_, std::string(argument), expected::unit_stride,
             "a stride of " + std::to_string(array.strides(d)) + " bytes");
      }
      shape.sizes.push_back(array.shape(d));
      shape.strides.push_back(array.strides(d) / item);
    }
    return {array.data(), array.ndim(), shape.sizes.data(), shape.strides.data(), shape.dtype.c_str()};
  }

  template <class T>
  Output empty(std::initializer_list<py::ssize_t> sizes) {
    return {py::array_t<T>(sizes)};
  }
  Output empty_table(Precision precision, std::initializer_list<py::ssize_t> sizes) {
    constexpr const char* kTypes[] = {"float32", "uint16", "int8"};
    static_assert(std::size(kTypes) == kTableElements, "a precision of contract/enums.def without its dtype");
    return {py::array(py::dtype(kTypes[static_cast<int>(precision)]), sizes)};
  }
  Output pack(const Plan& plan, const Tensors& weights) {
    Output packed = empty<uint8_t>({plan.packed_bytes});
    pack_towers(plan, bindings::input_of(*this, "weights", weights).data(), packed.data<void>());
    return packed;
  }

 private:
  struct Shape {
    std::string dtype;
    std::vector<int64_t> sizes, strides;
  };

  const char* op_;
  int64_t threads_;
  std::deque<Shape> shapes_;  // what views point to
};

inline py::array returned(Output output) { return std::move(output.array); }
template <class... Outputs>
py::tuple returned(std::tuple<Outputs...> outputs) {
  return std::apply([](auto&... output) { return py::make_tuple(std::move(output.array)...); }, outputs);
}

template <class Op, size_t... I>
void define(py::module_& m, std::index_sequence<I...>) {
  m.def(
      Op::kName,
      [](const bindings::ArgumentOf<Op, I>&... arguments, int64_t threads) {
        NumpyCall call(Op::kName, threads);
        return returned(Op::run(call, arguments...));
      },
      py::arg(std::string(Op::kArguments.all[I].name).c_str())..., py::arg("threads") = 0);
}
// With the schema's arguments, and threads: 0 for all usable cores.
template <class Op>
void define(py::module_& m) {
  define<Op>(m, std::make_index_sequence<Op::kArguments.count>());
}

}  // namespace resflow::runtime
