// resflow_kernels._runtime: the CPU kernels on NumPy arrays, without torch. The public face is
// resflow_kernels/runtime.py.
#include <algorithm>
#include <chrono>
#include <deque>
#include <string>
#include <vector>

#include "array.h"
#include "core/check.h"
#include "core/error.h"
#include "core/feature_form.h"
#include "core/pack.h"
#include "core/packed_layout.h"
#include "core/request.h"
#include "cpu/simd/isa.h"
#include "cpu/towers/score.h"

namespace resflow::runtime {
namespace {

using Encoded = std::vector<int64_t>;

// What every scoring function takes after its inputs.
struct Settings {
  View packed, fusion_weights;
  Request request;

  Settings(const char* op, const py::array& packed_array, const py::array& weights_array, const Encoded& plan,
           int64_t fusion, int64_t weights_per, int64_t threads)
      : packed(op, "packed", packed_array),
        fusion_weights(op, "fusion_weights", weights_array),
        request{op,
                decode_plan(op, plan.data(), static_cast<int64_t>(plan.size())),
                packed,
                fusion_weights,
                fusion,
                weights_per,
                thread_count(threads)} {}
};

py::tuple scores_of(const Request& request, const Candidates& candidates) {
  const py::ssize_t count = candidates.count, tasks = request.plan.tasks;
  py::array_t<float> logits({count, tasks}), probs({count, tasks}), score(count);
  float *to_logits = logits.mutable_data(), *to_probs = probs.mutable_data(), *to_score = score.mutable_data();
  {
    py::gil_scoped_release unlocked;
    cpu::score(request.model(), candidates, request.weights(), request.threads, to_logits, to_probs, to_score);
  }
  return py::make_tuple(logits, probs, score);
}

py::tuple best_of(const Request& request, const Candidates& candidates, py::ssize_t k) {
  const py::ssize_t requests = candidates.requests;
  py::array_t<float> scores({requests, k});
  py::array_t<int64_t> positions({requests, k});
  float* to_scores = scores.mutable_data();
  int64_t* to_positions = positions.mutable_data();
  {
    py::gil_scoped_release unlocked;
    cpu::score_topk(request.model(), candidates, request.weights(), request.threads, k, to_scores, to_positions);
  }
  return py::make_tuple(scores, positions);
}

py::array pack_towers(const std::vector<py::array>& weights, const Encoded& encoded) {
  constexpr const char* kOp = "pack_towers";
  const Plan plan = decode_plan(kOp, encoded.data(), static_cast<int64_t>(encoded.size()));
  std::deque<View> views;
  std::vector<TensorView> tensors;
  for (const py::array& weight : weights) tensors.push_back(views.emplace_back(kOp, "weights", weight));
  check_weights(kOp, plan, tensors.data(), static_cast<int64_t>(tensors.size()));
  py::array_t<uint8_t> packed(plan.packed_bytes);
  resflow::pack_towers(plan, tensors.data(), packed.mutable_data());
  return packed;
}

py::tuple dense_scores(const py::array& x, const py::array& packed, const py::array& fusion_weights,
                       const Encoded& plan, int64_t fusion, int64_t weights_per, int64_t threads) {
  const Settings settings("dense_scores", packed, fusion_weights, plan, fusion, weights_per, threads);
  const View x_view(settings.request.op, "x", x);
  return scores_of(settings.request, settings.request.dense(x_view));
}

py::tuple dense_topk(const py::array& x, const py::array& offsets, const py::array& packed,
                     const py::array& fusion_weights, const Encoded& plan, int64_t fusion, int64_t weights_per,
                     int64_t k, int64_t threads) {
  const Settings settings("dense_topk", packed, fusion_weights, plan, fusion, weights_per, threads);
  const View x_view(settings.request.op, "x", x), offsets_view(settings.request.op, "offsets", offsets);
  return best_of(settings.request, settings.request.dense_requests(x_view, offsets_view, k), k);
}

py::tuple request_scores(const py::array& user, const py::array& item, const py::array& offsets,
                         const py::array& packed, const py::array& fusion_weights, const Encoded& plan, int64_t fusion,
                         int64_t weights_per, int64_t threads) {
  const Settings settings("request_scores", packed, fusion_weights, plan, fusion, weights_per, threads);
  const char* const op = settings.request.op;
  const View user_view(op, "user", user), item_view(op, "item", item), offsets_view(op, "offsets", offsets);
  return scores_of(settings.request, settings.request.split(user_view, item_view, offsets_view));
}

py::tuple request_topk(const py::array& user, const py::array& item, const py::array& offsets, const py::array& packed,
                       const py::array& fusion_weights, const Encoded& plan, int64_t fusion, int64_t weights_per,
                       int64_t k, int64_t threads) {
  const Settings settings("request_topk", packed, fusion_weights, plan, fusion, weights_per, threads);
  const char* const op = settings.request.op;
  const View user_view(op, "user", user), item_view(op, "item", item), offsets_view(op, "offsets", offsets);
  const Candidates candidates = settings.request.split(user_view, item_view, offsets_view);
  check_positive(op, "k", k);
  return best_of(settings.request, candidates, k);
}

py::tuple catalog_rows(const py::array& item, const py::array& packed, const Encoded& encoded, int64_t element,
                       int64_t threads) {
  constexpr const char* kOp = "catalog_rows";
  const Plan plan = decode_plan(kOp, encoded.data(), static_cast<int64_t>(encoded.size()));
  const View item_view(kOp, "item", item), packed_view(kOp, "packed", packed);
  const TensorView items = item_view, packed_bytes = packed_view;
  check_catalog_rows(kOp, plan, items, packed_bytes, element);
  const auto precision = static_cast<Precision>(element);
  const py::ssize_t count = items.sizes[0], width = plan.tasks * plan.first_padded();
  constexpr const char* kTypes[] = {"float32", "uint16", "int8"};  // see View::table
  py::array rows(py::dtype(kTypes[element]), {count, width});
  py::array_t<float> row_scales(precision == Precision::int8 ? count : 0);
  void* const to_rows = rows.mutable_data();
  float* const to_scales = row_scales.mutable_data();
  {
    py::gil_scoped_release unlocked;
    cpu::project_items({plan, packed_bytes.data}, Request::rows_of(items), count, items.sizes[1], thread_count(threads),
                       precision, to_rows, to_scales);
  }
  return py::make_tuple(rows, row_scales);
}

struct CatalogArguments {
  View user, ids, offsets, table, scales;

  CatalogArguments(const char* op, const py::array& user_array, const py::array& ids_array,
                   const py::array& offsets_array, const py::array& table_array, const py::array& scales_array)
      : user(op, "user", user_array),
        ids(op, "ids", ids_array),
        offsets(op, "offsets", offsets_array),
        table(op, "table", table_array),
        scales(op, "scales", scales_array) {}

  Candidates candidates(const Request& request) const {
    return request.catalog(user, ids, offsets, table.table(), scales);
  }
};

py::tuple catalog_scores(const py::array& user, const py::array& ids, const py::array& offsets, const py::array& table,
                         const py::array& scales, const py::array& packed, const py::array& fusion_weights,
                         const Encoded& plan, int64_t fusion, int64_t weights_per, int64_t threads) {
  const Settings settings("catalog_scores", packed, fusion_weights, plan, fusion, weights_per, threads);
  const CatalogArguments arguments(settings.request.op, user, ids, offsets, table, scales);
  return scores_of(settings.request, arguments.candidates(settings.request));
}

py::tuple catalog_topk(const py::array& user, const py::array& ids, const py::array& offsets, const py::array& table,
                       const py::array& scales, const py::array& packed, const py::array& fusion_weights,
                       const Encoded& plan, int64_t fusion, int64_t weights_per, int64_t k, int64_t threads) {
  const Settings settings("catalog_topk", packed, fusion_weights, plan, fusion, weights_per, threads);
  const CatalogArguments arguments(settings.request.op, user, ids, offsets, table, scales);
  const Candidates candidates = arguments.candidates(settings.request);
  check_positive(settings.request.op, "k", k);
  return best_of(settings.request, candidates, k);
}

struct FeatureArguments {
  std::deque<View> views;
  FeatureTables all;

  FeatureArguments(const char* op, const std::vector<py::array>& tables, const std::vector<py::array>& scales,
                   const Encoded& ragged)
      : all{{}, {}, ragged} {
    for (const py::array& table : tables) all.tables.push_back(views.emplace_back(op, "tables", table).table());
    for (const py::array& scale : scales) all.scales.push_back(views.emplace_back(op, "scales", scale));
  }

  FeatureIds ids(const char* op, const std::string& prefix, const py::array& ids, const py::array& values,
                 const py::array& value_offsets) {
    const View& own = views.emplace_back(op, (prefix + "ids").c_str(), ids);
    const View& lists = views.emplace_back(op, (prefix + "values").c_str(), values);
    const View& offsets = views.emplace_back(op, (prefix + "value_offsets").c_str(), value_offsets);
    return {prefix, own, lists, offsets, 0, static_cast<int64_t>(all.tables.size())};
  }
};

py::tuple feature_scores(const py::array& ids, const py::array& values, const py::array& value_offsets,
                         const std::vector<py::array>& tables, const std::vector<py::array>& scales,
                         const Encoded& ragged, const py::array& packed, const py::array& fusion_weights,
                         const Encoded& plan, int64_t fusion, int64_t weights_per, int64_t threads) {
  const Settings settings("feature_scores", packed, fusion_weights, plan, fusion, weights_per, threads);
  const char* const op = settings.request.op;
  FeatureArguments arguments(op, tables, scales, ragged);
  const FeatureIds looked_up = arguments.ids(op, "", ids, values, value_offsets);
  FeatureForm form(settings.request, arguments.all);
  const Candidates candidates = form.dense(looked_up);
  return scores_of(settings.request, candidates);
}

py::tuple feature_topk(const py::array& ids, const py::array& values, const py::array& value_offsets,
                       const py::array& offsets, const std::vector<py::array>& tables,
                       const std::vector<py::array>& scales, const Encoded& ragged, const py::array& packed,
                       const py::array& fusion_weights, const Encoded& plan, int64_t fusion, int64_t weights_per,
                       int64_t k, int64_t threads) {
  const Settings settings("feature_topk", packed, fusion_weights, plan, fusion, weights_per, threads);
  const char* const op = settings.request.op;
  FeatureArguments arguments(op, tables, scales, ragged);
  const FeatureIds looked_up = arguments.ids(op, "", ids, values, value_offsets);
  const View offsets_view(op, "offsets", offsets);
  FeatureForm form(settings.request, arguments.all);
  const Candidates candidates = form.dense_requests(looked_up, offsets_view, k);
  return best_of(settings.request, candidates, k);
}

py::tuple feature_request_scores(const py::array& user_ids, const py::array& user_values,
                                 const py::array& user_value_offsets, const py::array& item_ids,
                                 const py::array& item_values, const py::array& item_value_offsets,
                                 const py::array& offsets, const std::vector<py::array>& tables,
                                 const std::vector<py::array>& scales, const Encoded& ragged, int64_t user_features,
                                 const py::array& packed, const py::array& fusion_weights, const Encoded& plan,
                                 int64_t fusion, int64_t weights_per, int64_t threads) {
  const Settings settings("feature_request_scores", packed, fusion_weights, plan, fusion, weights_per, threads);
  const char* const op = settings.request.op;
  FeatureArguments arguments(op, tables, scales, ragged);
  const FeatureIds user = arguments.ids(op, "user_", user_ids, user_values, user_value_offsets);
  const FeatureIds item = arguments.ids(op, "item_", item_ids, item_values, item_value_offsets);
  const View offsets_view(op, "offsets", offsets);
  FeatureForm form(settings.request, arguments.all);
  const Candidates candidates = form.split(user, item, offsets_view, user_features);
  return scores_of(settings.request, candidates);
}

py::tuple feature_request_topk(const py::array& user_ids, const py::array& user_values,
                               const py::array& user_value_offsets, const py::array& item_ids,
                               const py::array& item_values, const py::array& item_value_offsets,
                               const py::array& offsets, const std::vector<py::array>& tables,
                               const std::vector<py::array>& scales, const Encoded& ragged, int64_t user_features,
                               const py::array& packed, const py::array& fusion_weights, const Encoded& plan,
                               int64_t fusion, int64_t weights_per, int64_t k, int64_t threads) {
  const Settings settings("feature_request_topk", packed, fusion_weights, plan, fusion, weights_per, threads);
  const char* const op = settings.request.op;
  FeatureArguments arguments(op, tables, scales, ragged);
  const FeatureIds user = arguments.ids(op, "user_", user_ids, user_values, user_value_offsets);
  const FeatureIds item = arguments.ids(op, "item_", item_ids, item_values, item_value_offsets);
  const View offsets_view(op, "offsets", offsets);
  FeatureForm form(settings.request, arguments.all);
  const Candidates candidates = form.split(user, item, offsets_view, user_features);
  check_positive(op, "k", k);
  return best_of(settings.request, candidates, k);
}

double measure_peak(int64_t precision, int64_t threads, double seconds) {
  check_element("measure_peak", precision);
  py::gil_scoped_release unlocked;
  return cpu::measure_peak(static_cast<Precision>(precision), thread_count(threads), seconds);
}

// Seconds of each of `calls` calls from C++ into outputs that are there already: what the calls of other languages
// are held against.
std::vector<double> measure_dense_seconds(const py::array& x, const py::array& packed, const py::array& fusion_weights,
                                          const Encoded& plan, int64_t fusion, int64_t threads, int64_t calls) {
  using Clock = std::chrono::steady_clock;
  const Settings settings("dense_scores", packed, fusion_weights, plan, fusion, 0, threads);
  const Request& request = settings.request;
  const View x_view(request.op, "x", x);
  const Candidates candidates = request.dense(x_view);
  std::vector<float> logits(candidates.count * request.plan.tasks), probs(logits.size()), score(candidates.count);
  std::vector<double> seconds(std::max<int64_t>(calls, 0));
  py::gil_scoped_release unlocked;
  for (double& elapsed : seconds) {
    const auto begin = Clock::now();
    cpu::score(request.model(), candidates, request.weights(), request.threads, logits.data(), probs.data(),
               score.data());
    elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  return seconds;
}

}  // namespace
}  // namespace resflow::runtime

PYBIND11_MODULE(_runtime, m) {
  namespace py = pybind11;
  using namespace resflow;
  using namespace resflow::runtime;
  m.doc() = "The CPU kernels on NumPy arrays; see resflow_kernels.serving.scorer.";
  m.def("pack_towers", &runtime::pack_towers, py::arg("weights"), py::arg("plan"));
  m.def("packed_layout", &packed_layout, py::arg("plan"));
  m.def("dense_scores", &dense_scores, py::arg("x"), py::arg("packed"), py::arg("fusion_weights"), py::arg("plan"),
        py::arg("fusion"), py::arg("weights_per"), py::arg("threads") = 0);
  m.def("dense_topk", &dense_topk, py::arg("x"), py::arg("offsets"), py::arg("packed"), py::arg("fusion_weights"),
        py::arg("plan"), py::arg("fusion"), py::arg("weights_per"), py::arg("k"), py::arg("threads") = 0);
  m.def("request_scores", &request_scores, py::arg("user"), py::arg("item"), py::arg("offsets"), py::arg("packed"),
        py::arg("fusion_weights"), py::arg("plan"), py::arg("fusion"), py::arg("weights_per"), py::arg("threads") = 0);
  m.def("request_topk", &request_topk, py::arg("user"), py::arg("item"), py::arg("offsets"), py::arg("packed"),
        py::arg("fusion_weights"), py::arg("plan"), py::arg("fusion"), py::arg("weights_per"), py::arg("k"),
        py::arg("threads") = 0);
  m.def("isa", [] { return std::string(cpu::kernels().name); }, "The instruction set in use.");
  m.def("compiled_isas", &cpu::compiled_isas, "Instruction sets compiled in, best first.");
  m.def("supported_isas", &cpu::supported_isas, "Those of them this machine can run.");
  m.def("catalog_rows", &catalog_rows, py::arg("item"), py::arg("packed"), py::arg("plan"), py::arg("element"),
        py::arg("threads") = 0);
  m.def("catalog_scores", &catalog_scores, py::arg("user"), py::arg("ids"), py::arg("offsets"), py::arg("table"),
        py::arg("scales"), py::arg("packed"), py::arg("fusion_weights"), py::arg("plan"), py::arg("fusion"),
        py::arg("weights_per"), py::arg("threads") = 0);
  m.def("catalog_topk", &catalog_topk, py::arg("user"), py::arg("ids"), py::arg("offsets"), py::arg("table"),
        py::arg("scales"), py::arg("packed"), py::arg("fusion_weights"), py::arg("plan"), py::arg("fusion"),
        py::arg("weights_per"), py::arg("k"), py::arg("threads") = 0);
  m.def("feature_scores", &feature_scores, py::arg("ids"), py::arg("values"), py::arg("value_offsets"),
        py::arg("tables"), py::arg("scales"), py::arg("ragged"), py::arg("packed"), py::arg("fusion_weights"),
        py::arg("plan"), py::arg("fusion"), py::arg("weights_per"), py::arg("threads") = 0);
  m.def("feature_topk", &feature_topk, py::arg("ids"), py::arg("values"), py::arg("value_offsets"), py::arg("offsets"),
        py::arg("tables"), py::arg("scales"), py::arg("ragged"), py::arg("packed"), py::arg("fusion_weights"),
        py::arg("plan"), py::arg("fusion"), py::arg("weights_per"), py::arg("k"), py::arg("threads") = 0);
  m.def("feature_request_scores", &feature_request_scores, py::arg("user_ids"), py::arg("user_values"),
        py::arg("user_value_offsets"), py::arg("item_ids"), py::arg("item_values"), py::arg("item_value_offsets"),
        py::arg("offsets"), py::arg("tables"), py::arg("scales"), py::arg("ragged"), py::arg("user_features"),
        py::arg("packed"), py::arg("fusion_weights"), py::arg("plan"), py::arg("fusion"), py::arg("weights_per"),
        py::arg("threads") = 0);
  m.def("feature_request_topk", &feature_request_topk, py::arg("user_ids"), py::arg("user_values"),
        py::arg("user_value_offsets"), py::arg("item_ids"), py::arg("item_values"), py::arg("item_value_offsets"),
        py::arg("offsets"), py::arg("tables"), py::arg("scales"), py::arg("ragged"), py::arg("user_features"),
        py::arg("packed"), py::arg("fusion_weights"), py::arg("plan"), py::arg("fusion"), py::arg("weights_per"),
        py::arg("k"), py::arg("threads") = 0);
  m.def("measure_peak", &measure_peak, py::arg("precision"), py::arg("threads"), py::arg("seconds"),
        "10^9 operations a second of register-only products in a precision (its place in contract.PRECISIONS): the "
        "peak benchmarks are held against.");
  m.def("measure_dense_seconds", &measure_dense_seconds, py::arg("x"), py::arg("packed"), py::arg("fusion_weights"),
        py::arg("plan"), py::arg("fusion"), py::arg("threads"), py::arg("calls"),
        "Seconds of each of `calls` calls of dense_scores made from C++.");
  define_twin(m);
}
