// resflow_kernels._runtime: the CPU kernels on NumPy arrays, without torch. Its public interface is
// resflow_kernels/serving/scorer.py.
#include <algorithm>
#include <chrono>

#include "array.h"
#include "core/packed_layout.h"
#include "cpu/simd/isa.h"
#include "same.h"

namespace resflow::runtime {
namespace {

double measure_peak(int64_t precision, int64_t threads, double seconds) {
  check_table_dtype("measure_peak", precision);
  py::gil_scoped_release unlocked;
  return cpu::measure_peak(static_cast<Precision>(precision), thread_count(threads), seconds);
}

double measure_read_bandwidth(const py::array& array, int64_t threads) {
  const void* const from = array.data();
  const int64_t bytes = array.nbytes();
  py::gil_scoped_release unlocked;
  return cpu::measure_read_bandwidth(from, bytes, thread_count(threads));
}

// Seconds of each of `calls` calls from C++ into existing outputs, with which calls from other languages are compared.
std::vector<double> measure_dense_seconds(const py::array& x, const py::array& packed, const py::array& fusion_weights,
                                          const Integers& plan, int64_t fusion, int64_t threads, int64_t calls) {
  using Clock = std::chrono::steady_clock;
  NumpyCall policy("dense_scores", threads);
  const ScoringArgs args(policy.name, policy.view("packed", packed), policy.view("fusion_weights", fusion_weights),
                         plan, fusion, 0);
  const ScoringCall call = forms::dense().parse(args, policy.view("x", x));
  std::vector<float> logits(call.scored() * call.tasks()), probs(logits.size()), score(call.scored());
  std::vector<double> seconds(std::max<int64_t>(calls, 0));
  py::gil_scoped_release unlocked;
  for (double& elapsed : seconds) {
    const auto begin = Clock::now();
    cpu::towers_scores(call, {logits.data(), probs.data(), score.data()}, policy.resources());
    elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  return seconds;
}

}  // namespace
}  // namespace resflow::runtime

PYBIND11_MODULE(_runtime, m) {
  using namespace resflow;
  using namespace resflow::runtime;
  namespace ops = resflow::bindings::ops;
  m.doc() = "The CPU kernels on NumPy arrays; see resflow_kernels.serving.scorer.";
#define RESFLOW_FORM(form, model, inputs, topk_inputs, options, flags) \
  define<ops::form##_scores<NumpyCall, cpu::model##_scores>>(m);       \
  define<ops::form##_topk<NumpyCall, cpu::model##_topk>>(m);
#define RESFLOW_OP(name, schema) define<ops::name<NumpyCall>>(m);
#include "contract/ops.def"
  m.def("packed_layout", &packed_layout, py::arg("plan"));
  m.def("isa", [] { return std::string(cpu::kernels().name); }, "The instruction set in use.");
  m.def("compiled_isas", &cpu::compiled_isas, "Instruction sets compiled in, best first.");
  m.def("supported_isas", &cpu::supported_isas, "Those of them this machine can run.");
  m.def("measure_peak", &measure_peak, py::arg("precision"), py::arg("threads"), py::arg("seconds"),
        "10^9 operations per second of register-only products in a precision (its place in contract.PRECISIONS): the "
        "peak benchmarks are held against.");
  m.def("measure_read_bandwidth", &measure_read_bandwidth, py::arg("array"), py::arg("threads"),
        "10^9 bytes per second at which a contiguous array is read front to back: the peak benchmarks are held "
        "against.");
  m.def("measure_dense_seconds", &measure_dense_seconds, py::arg("x"), py::arg("packed"), py::arg("fusion_weights"),
        py::arg("plan"), py::arg("fusion"), py::arg("threads"), py::arg("calls"),
        "Seconds of each of `calls` calls of dense_scores made from C++.");
  static PyMethodDef same[] = {
      {"same_entries", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(same_entries)), METH_FASTCALL,
       "Whether the values of a list of dictionaries, one after another, are the very objects of a list."},
      {"same_sizes", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(same_sizes)), METH_FASTCALL,
       "Whether a list of dictionaries has the sizes of a list."},
      {}};
  if (PyModule_AddFunctions(m.ptr(), same) != 0) throw py::error_already_set();
}
