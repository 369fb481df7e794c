// Ops on NumPy arrays: the policy of csrc/bindings/op.h.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <deque>
#include <string>

#include "bindings/op.h"
#include "core/error.h"
#include "core/precision.h"
#include "cpu/threads/thread_pool.h"
#include "cpu/towers/towers.h"
#include "cpu/twin/twin.h"

namespace resflow::runtime {

namespace py = pybind11;

inline int64_t thread_count(int64_t threads) { return threads > 0 ? threads : cpu::usable_cores(); }

struct NumpyCall {
  using Tensor = py::array;
  struct Output {
    py::array array;
    template <class T>
    T* data() {
      return static_cast<T*>(array.mutable_data());
    }
  };
  using Unlocked = py::gil_scoped_release;

  static constexpr auto catalog_rows = cpu::catalog_rows;
  static constexpr auto program_outputs = cpu::program_outputs;
  static constexpr auto twin_rows = cpu::twin_rows;

  NumpyCall(const char* op, int64_t threads) : name(op), threads(threads) {}

  const char* op() const { return name; }
  static constexpr bool rereads_values() { return false; }
  int64_t resources() const { return thread_count(threads); }

  // NumPy counts strides in bytes, a view in elements; NumPy has no bfloat16, so a table's bits are passed as uint16.
  TensorView view(std::string_view argument, const py::array& array) {
    Shape& shape = shapes.emplace_back();
    shape.dtype = py::str(array.dtype());
    if (argument.starts_with("table") && shape.dtype == "uint16") shape.dtype = "bfloat16";
    const int64_t item = array.itemsize();
    for (py::ssize_t d = 0; d < array.ndim(); ++d) {
      if (item == 0 || array.strides(d) % item != 0) {
        const std::string got = "a stride of " + std::to_string(array.strides(d)) + " bytes";
        fail(name, std::string(argument), expected::unit_stride, got);
      }
      shape.sizes.push_back(array.shape(d));
      shape.strides.push_back(array.strides(d) / item);
    }
    return {array.data(), array.ndim(), shape.sizes.data(), shape.strides.data(), shape.dtype.c_str()};
  }

  template <class T>
  Output empty(std::initializer_list<int64_t> sizes) {
    return {py::array(py::dtype::of<T>(), sizes)};
  }
  Output empty_table(Precision precision, std::initializer_list<int64_t> sizes) {
    return with_precision<precision_flag::in_tables>(precision, [&](auto p) { return empty<Stored<p.value>>(sizes); });
  }
  Output pack(const Plan& plan, const bindings::Views& views, const std::vector<py::array>&) {
    Output packed = empty<uint8_t>({plan.packed_bytes});
    pack_towers(plan, views.data(), packed.data<void>());
    return packed;
  }

  struct Shape {
    std::string dtype;
    std::vector<int64_t> sizes, strides;
  };

  const char* name;
  int64_t threads;
  std::deque<Shape> shapes;  // referenced by views
};

inline py::array returned(NumpyCall::Output result) { return std::move(result.array); }
template <class... Outputs>
py::tuple returned(std::tuple<Outputs...> results) {
  return std::apply([](auto&... own) { return py::make_tuple(std::move(own.array)...); }, results);
}

// Defines an op with the schema's arguments and `threads`, where 0 means all usable cores.
template <class Op>
void define(py::module_& m) {
  [&]<size_t... I>(std::index_sequence<I...>) {
    const auto run = [](const typename Op::template ArgumentOf<I>&... arguments, int64_t threads) {
      NumpyCall call(Op::kName, threads);
      return returned(Op::run(call, arguments...));
    };
    m.def(Op::kName, run, py::arg(std::string(Op::kArguments.all[I].name).c_str())..., py::arg("threads") = 0);
  }(std::make_index_sequence<Op::kArguments.count>());
}

}  // namespace resflow::runtime
