// The twin tower form on NumPy arrays.
#include "cpu/twin/twin.h"
#include "array.h"
#include "core/check.h"
#include "core/twin_request.h"

namespace resflow::runtime {
namespace {

using Parents = std::vector<int64_t>;

// What every scoring function takes besides its candidates.
struct Arguments {
  View user, table, scales, fusion_weights;
  TwinRequest request;

  Arguments(const char* op, const py::array& user_array, const py::array& table_array, const py::array& scales_array,
            const py::array& weights_array, const Parents& parents, bool non_increasing, int64_t fusion,
            int64_t weights_per, int64_t threads)
      : user(op, "user", user_array),
        table(op, "table", table_array),
        scales(op, "scales", scales_array),
        fusion_weights(op, "fusion_weights", weights_array),
        request{op,
                user,
                table.table(),
                scales,
                fusion_weights,
                parents.data(),
                static_cast<int64_t>(parents.size()),
                non_increasing,
                fusion,
                weights_per,
                thread_count(threads)} {}
  Arguments(const Arguments&) = delete;  // the request's views point into the others

  TwinCall listed(const py::array& ids_array, const py::array& offsets_array) const {
    const View ids(request.op, "ids", ids_array), offsets(request.op, "offsets", offsets_array);
    return request.listed(ids, offsets);
  }
};

py::tuple scores_of(const TwinCall& call, py::ssize_t candidates) {
  const py::ssize_t tasks = call.model.tasks;
  py::array_t<float> logits({candidates, tasks}), probs({candidates, tasks}), score(candidates);
  float *to_logits = logits.mutable_data(), *to_probs = probs.mutable_data(), *to_score = score.mutable_data();
  {
    py::gil_scoped_release unlocked;
    cpu::twin_score(call, to_logits, to_probs, to_score);
  }
  return py::make_tuple(logits, probs, score);
}

py::tuple best_of(const char* op, const TwinCall& call, py::ssize_t k) {
  check_positive(op, "k", k);
  const py::ssize_t requests = call.requests;
  py::array_t<float> scores({requests, k});
  py::array_t<int64_t> positions({requests, k});
  float* to_scores = scores.mutable_data();
  int64_t* to_positions = positions.mutable_data();
  {
    py::gil_scoped_release unlocked;
    cpu::twin_topk(call, k, to_scores, to_positions);
  }
  return py::make_tuple(scores, positions);
}

py::tuple twin_rows(const py::array& vectors, int64_t tasks, int64_t element, int64_t threads) {
  constexpr const char* kOp = "twin_rows";
  const View view(kOp, "vectors", vectors);
  const TensorView rows = view;
  check_twin_rows(kOp, rows, tasks, element);
  const py::ssize_t count = rows.sizes[0], columns = rows.sizes[1];
  const auto precision = static_cast<Precision>(element);
  constexpr const char* kTypes[] = {"float32", "uint16", "int8"};  // see View::table
  py::array table(py::dtype(kTypes[element]), {count, columns});
  py::array_t<float> scales({precision == Precision::int8 ? count : 0, static_cast<py::ssize_t>(tasks)});
  void* const to_table = table.mutable_data();
  float* const to_scales = scales.mutable_data();
  {
    py::gil_scoped_release unlocked;
    cpu::twin_rows(Request::rows_of(rows), count, tasks, columns / tasks, thread_count(threads), precision, to_table,
                   to_scales);
  }
  return py::make_tuple(table, scales);
}

py::tuple twin_scores(const py::array& user, const py::array& table, const py::array& scales,
                      const py::array& fusion_weights, const Parents& parents, bool non_increasing, int64_t fusion,
                      int64_t weights_per, int64_t threads) {
  const Arguments arguments("twin_scores", user, table, scales, fusion_weights, parents, non_increasing, fusion,
                            weights_per, threads);
  const TwinCall call = arguments.request.all();
  return scores_of(call, call.requests * call.count);
}

py::tuple twin_topk(const py::array& user, const py::array& table, const py::array& scales,
                    const py::array& fusion_weights, const Parents& parents, bool non_increasing, int64_t fusion,
                    int64_t weights_per, int64_t k, int64_t threads) {
  const Arguments arguments("twin_topk", user, table, scales, fusion_weights, parents, non_increasing, fusion,
                            weights_per, threads);
  return best_of("twin_topk", arguments.request.all(), k);
}

py::tuple twin_ids_scores(const py::array& user, const py::array& ids, const py::array& offsets, const py::array& table,
                          const py::array& scales, const py::array& fusion_weights, const Parents& parents,
                          bool non_increasing, int64_t fusion, int64_t weights_per, int64_t threads) {
  const Arguments arguments("twin_ids_scores", user, table, scales, fusion_weights, parents, non_increasing, fusion,
                            weights_per, threads);
  const TwinCall call = arguments.listed(ids, offsets);
  return scores_of(call, call.count);
}

py::tuple twin_ids_topk(const py::array& user, const py::array& ids, const py::array& offsets, const py::array& table,
                        const py::array& scales, const py::array& fusion_weights, const Parents& parents,
                        bool non_increasing, int64_t fusion, int64_t weights_per, int64_t k, int64_t threads) {
  const Arguments arguments("twin_ids_topk", user, table, scales, fusion_weights, parents, non_increasing, fusion,
                            weights_per, threads);
  return best_of("twin_ids_topk", arguments.listed(ids, offsets), k);
}

double measure_read_bandwidth(const py::array& array, int64_t threads) {
  const void* const from = array.data();
  const int64_t bytes = array.nbytes();
  py::gil_scoped_release unlocked;
  return cpu::measure_read_bandwidth(from, bytes, thread_count(threads));
}

}  // namespace

void define_twin(py::module_& m) {
  m.def("twin_rows", &twin_rows, py::arg("vectors"), py::arg("tasks"), py::arg("element"), py::arg("threads") = 0);
  m.def("twin_scores", &twin_scores, py::arg("user"), py::arg("table"), py::arg("scales"), py::arg("fusion_weights"),
        py::arg("parents"), py::arg("non_increasing"), py::arg("fusion"), py::arg("weights_per"),
        py::arg("threads") = 0);
  m.def("twin_topk", &twin_topk, py::arg("user"), py::arg("table"), py::arg("scales"), py::arg("fusion_weights"),
        py::arg("parents"), py::arg("non_increasing"), py::arg("fusion"), py::arg("weights_per"), py::arg("k"),
        py::arg("threads") = 0);
  m.def("twin_ids_scores", &twin_ids_scores, py::arg("user"), py::arg("ids"), py::arg("offsets"), py::arg("table"),
        py::arg("scales"), py::arg("fusion_weights"), py::arg("parents"), py::arg("non_increasing"), py::arg("fusion"),
        py::arg("weights_per"), py::arg("threads") = 0);
  m.def("twin_ids_topk", &twin_ids_topk, py::arg("user"), py::arg("ids"), py::arg("offsets"), py::arg("table"),
        py::arg("scales"), py::arg("fusion_weights"), py::arg("parents"), py::arg("non_increasing"), py::arg("fusion"),
        py::arg("weights_per"), py::arg("k"), py::arg("threads") = 0);
  m.def("measure_read_bandwidth", &measure_read_bandwidth, py::arg("array"), py::arg("threads"),
        "10^9 bytes a second at which a contiguous array is read front to back: the peak benchmarks are held against.");
}

}  // namespace resflow::runtime
