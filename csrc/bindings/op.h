// The ops of contract/ops.def, written once for all bindings: a form's inputs become a checked call, which one of the
// model's kernels ends in scores or in the k best of each request.
//
// A binding is a policy: a class that has made one call's arguments its own.
//   Tensor, Tensors, Integers    what its functions take for Tensor, Tensor[] and int[]
//   op()                         the op's name
//   view(argument, tensor)       what the checks see of a tensor, or why it is none of this binding's
//   rereads_values()             whether the checks run again, with the values on a GPU copied to the host
//   empty<T>(sizes)              an Output, a new tensor of float, int64_t or uint8_t; empty_table(precision, sizes)
//   pack(plan, weights)          packed weights, of tensors that are checked
//   resources()                  what kernels take last: threads, or a GPU's queue
//   Unlocked                     an object of it lives while a kernel runs
//   towers_scores, towers_topk, twin_scores, twin_topk, catalog_rows, twin_rows    the kernels
#pragma once

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/schema.h"
#include "core/feature_form.h"
#include "core/scoring_args.h"
#include "core/twin_args.h"

namespace resflow::bindings {

using Views = std::vector<TensorView>;
using Integers = std::vector<int64_t>;

// How the inputs of each form, in the order of its row, become a checked call.
namespace forms {

struct dense {
  ScoringCall parse(const ScoringArgs& args, const TensorView& x) { return args.dense(x); }
  ScoringCall parse(const ScoringArgs& args, const TensorView& x, const TensorView& offsets) {
    return args.dense_requests(x, offsets);
  }
};

struct request {
  ScoringCall parse(const ScoringArgs& args, const TensorView& user, const TensorView& item,
                    const TensorView& offsets) {
    return args.user_item(user, item, offsets);
  }
};

struct catalog {
  ScoringCall parse(const ScoringArgs& args, const TensorView& user, const TensorView& ids, const TensorView& offsets,
                    const TensorView& table, const TensorView& scales) {
    return args.catalog(user, ids, offsets, table, scales);
  }
};

struct feature {
  ScoringCall parse(const ScoringArgs& args, const TensorView& ids, const TensorView& values,
                    const TensorView& value_offsets, const Views& tables, const Views& scales, const Integers& ragged) {
    return form.dense(args, {tables, scales, ragged}, {"", ids, values, value_offsets, 0, 0});
  }
  ScoringCall parse(const ScoringArgs& args, const TensorView& ids, const TensorView& values,
                    const TensorView& value_offsets, const Views& tables, const Views& scales, const Integers& ragged,
                    const TensorView& offsets) {
    return form.dense_requests(args, {tables, scales, ragged}, {"", ids, values, value_offsets, 0, 0}, offsets);
  }
  FeatureForm form;
};

struct feature_request {
  ScoringCall parse(const ScoringArgs& args, const TensorView& user_ids, const TensorView& user_values,
                    const TensorView& user_value_offsets, const TensorView& item_ids, const TensorView& item_values,
                    const TensorView& item_value_offsets, const TensorView& offsets, const Views& tables,
                    const Views& scales, const Integers& ragged, int64_t user_features) {
    return form.user_item(args, {tables, scales, ragged}, {"user_", user_ids, user_values, user_value_offsets, 0, 0},
                          {"item_", item_ids, item_values, item_value_offsets, 0, 0}, offsets, user_features);
  }
  FeatureForm form;
};

struct twin {
  TwinCall parse(const TwinArgs& args, const TensorView& user, const TensorView& table, const TensorView& scales) {
    return args.all(user, table, scales);
  }
};

struct twin_ids {
  TwinCall parse(const TwinArgs& args, const TensorView& user, const TensorView& ids, const TensorView& offsets,
                 const TensorView& table, const TensorView& scales) {
    return args.listed(user, ids, offsets, table, scales);
  }
};

}  // namespace forms

// The thread's last plan, decoded: a server's calls are of one model, and decoding took a third of an op's overhead.
// Stands until the thread's next call.
inline const Plan& decoded(const char* op, const Integers& encoded) {
  thread_local Integers last;
  thread_local Plan plan;
  if (encoded != last || last.empty()) {
    last.clear();
    plan = decode_plan(op, encoded.data(), static_cast<int64_t>(encoded.size()));
    last = encoded;
  }
  return plan;
}

// What the models' own arguments, in the order of their rows, become.
namespace models {

struct towers {
  template <class P>
  static ScoringArgs args(P& call, const typename P::Tensor& packed, const typename P::Tensor& fusion_weights,
                          const Integers& plan, int64_t fusion, int64_t weights_per) {
    return {call.op(),
            decoded(call.op(), plan),
            call.view("packed", packed),
            call.view("fusion_weights", fusion_weights),
            fusion,
            weights_per};
  }
};

struct twin {
  template <class P>
  static TwinArgs args(P& call, const typename P::Tensor& fusion_weights, const Integers& parents, bool non_increasing,
                       int64_t fusion, int64_t weights_per) {
    return {call.op(),      call.view("fusion_weights", fusion_weights),
            parents.data(), static_cast<int64_t>(parents.size()),
            non_increasing, fusion,
            weights_per};
  }
};

}  // namespace models

// What an op gives back: new tensors, where a kernel writes.
namespace endings {

template <class P>
struct scores {
  template <class Call>
  scores(P& policy, const Call& call)
      : logits(policy.template empty<float>({call.scored(), call.tasks()})),
        probs(policy.template empty<float>({call.scored(), call.tasks()})),
        score(policy.template empty<float>({call.scored()})) {}
  ScoresOut out() {
    return {logits.template data<float>(), probs.template data<float>(), score.template data<float>()};
  }
  auto results() { return std::tuple(std::move(logits), std::move(probs), std::move(score)); }

  typename P::Output logits, probs, score;
};

template <class P>
struct topk {
  template <class Call>
  topk(P& policy, const Call& call, int64_t k)
      : k((check_positive(policy.op(), "k", k), k)),
        scores(policy.template empty<float>({call.request_count(), k})),
        positions(policy.template empty<int64_t>({call.request_count(), k})) {}
  TopKOut out() { return {k, scores.template data<float>(), positions.template data<int64_t>()}; }
  auto results() { return std::tuple(std::move(scores), std::move(positions)); }

  int64_t k;
  typename P::Output scores, positions;
};

}  // namespace endings

// What a form takes for an input.
template <class P, class Input>
decltype(auto) input_of(P& call, std::string_view name, const Input& input) {
  if constexpr (std::is_same_v<Input, typename P::Tensor>) {
    return call.view(name, input);
  } else if constexpr (std::is_same_v<Input, typename P::Tensors>) {
    Views views;
    views.reserve(input.size());
    for (const auto& tensor : input) views.push_back(call.view(name, tensor));
    return views;
  } else {
    return (input);
  }
}

// An op's name and arguments.
template <class PolicyOfOp, Text kText, Text kSchema>
struct Op {
  using Policy = PolicyOfOp;
  static constexpr const char* kName = kText.characters;
  static constexpr Arguments kArguments = arguments_of(kSchema.view());
};

template <class P, class Form, class Model, size_t kModelArguments, class Ending, size_t kEndingArguments, auto kKernel,
          Text kText, Text kSchema>
struct ScoringOp : Op<P, kText, kSchema> {
  static constexpr const Arguments& kArguments = ScoringOp::Op::kArguments;
  static constexpr size_t kInputs = kArguments.count - kModelArguments - kEndingArguments;

  template <class... T>
  static auto run(P& call, const T&... arguments) {
    const auto all = std::tie(arguments...);
    const auto check = [&](Form& form) {
      const auto args = apply_part<kInputs>(
          all, [&](const auto&... own) { return Model::args(call, own...); }, Indices<kModelArguments>());
      return parse(call, form, args, all, Indices<kInputs>());
    };
    Form form;
    const auto checked = check(form);
    if (call.rereads_values()) {
      Form again;
      check(again);
    }
    auto ending = apply_part<kInputs + kModelArguments>(
        all, [&](const auto&... own) { return Ending(call, checked, own...); }, Indices<kEndingArguments>());
    {
      [[maybe_unused]] const typename P::Unlocked unlocked;
      kKernel(checked, ending.out(), call.resources());
    }
    return ending.results();
  }

 private:
  template <size_t kCount>
  using Indices = std::make_index_sequence<kCount>;

  template <size_t kFirst, class All, class Function, size_t... I>
  static auto apply_part(const All& all, Function function, std::index_sequence<I...>) {
    return function(std::get<kFirst + I>(all)...);
  }

  template <class Args, class All, size_t... I>
  static auto parse(P& call, Form& form, const Args& args, const All& all, std::index_sequence<I...>) {
    // In braces: from the first to the last.
    const std::tuple<decltype(input_of(call, {}, std::get<I>(all)))...> inputs{
        input_of(call, kArguments.all[I].name, std::get<I>(all))...};
    return form.parse(args, std::get<I>(inputs)...);
  }
};

// Table rows of either kind: their tensors, and the scales of int8.
template <class P>
struct TableRows {
  TableRows(P& call, int64_t dtype, std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> scale_sizes)
      : precision(static_cast<Precision>(dtype)),
        table(call.empty_table(precision, sizes)),
        scales(call.template empty<float>(scale_sizes)) {}
  auto results() { return std::tuple(std::move(table), std::move(scales)); }

  Precision precision;
  typename P::Output table, scales;
};

// The ops by their names: of forms, and those that prepare what the forms take.
namespace ops {

#define RESFLOW_FORM(form, model, inputs, topk_inputs, flags)                                                          \
  template <class P>                                                                                                   \
  using form##_scores =                                                                                                \
      ScoringOp<P, forms::form, models::model, arguments_of(schemas::model##_arguments.view()).count,                  \
                endings::scores<P>, arguments_of(schemas::scores_arguments.view()).count, P::model##_scores,           \
                #form "_scores", schemas::form##_scores>;                                                              \
  template <class P>                                                                                                   \
  using form##_topk = ScoringOp<P, forms::form, models::model, arguments_of(schemas::model##_arguments.view()).count,  \
                                endings::topk<P>, arguments_of(schemas::topk_arguments.view()).count, P::model##_topk, \
                                #form "_topk", schemas::form##_topk>;
#include "contract/ops.def"

template <class P>
struct pack_towers : Op<P, "pack_towers", schemas::pack_towers> {
  static auto run(P& call, const typename P::Tensors& weights, const Integers& encoded) {
    const Plan& plan = decoded(call.op(), encoded);
    const Views views = input_of(call, "weights", weights);
    check_weights(call.op(), plan, views.data(), static_cast<int64_t>(views.size()));
    return call.pack(plan, weights);
  }
};

template <class P>
struct catalog_rows : Op<P, "catalog_rows", schemas::catalog_rows> {
  static auto run(P& call, const typename P::Tensor& item, const typename P::Tensor& packed, const Integers& encoded,
                  int64_t dtype) {
    const Plan& plan = decoded(call.op(), encoded);
    const auto check = [&] {
      const TensorView items = call.view("item", item), weights = call.view("packed", packed);
      check_catalog_rows(call.op(), plan, items, weights, dtype);
      return std::pair(items, weights);
    };
    const auto [items, weights] = check();
    if (call.rereads_values()) check();
    const int64_t count = items.sizes[0], width = plan.tasks * plan.first_padded();
    TableRows<P> rows(call, dtype, {count, width}, {dtype == static_cast<int64_t>(Precision::int8) ? count : 0});
    void* const to = rows.table.template data<void>();
    float* const scales = rows.scales.template data<float>();
    {
      [[maybe_unused]] const typename P::Unlocked unlocked;
      P::catalog_rows({plan, weights.data}, rows_of(items), count, items.sizes[1], rows.precision, to, scales,
                      call.resources());
    }
    return rows.results();
  }
};

template <class P>
struct twin_rows : Op<P, "twin_rows", schemas::twin_rows> {
  static auto run(P& call, const typename P::Tensor& vectors, int64_t tasks, int64_t dtype) {
    const TensorView view = call.view("vectors", vectors);
    check_twin_rows(call.op(), view, tasks, dtype);
    const int64_t count = view.sizes[0], columns = view.sizes[1];
    TableRows<P> rows(call, dtype, {count, columns},
                      {dtype == static_cast<int64_t>(Precision::int8) ? count : 0, tasks});
    void* const to = rows.table.template data<void>();
    float* const scales = rows.scales.template data<float>();
    {
      [[maybe_unused]] const typename P::Unlocked unlocked;
      P::twin_rows(rows_of(view), count, tasks, columns / tasks, rows.precision, to, scales, call.resources());
    }
    return rows.results();
  }
};

}  // namespace ops

// What a binding's function takes for an argument.
template <class P, Kind kKind>
struct TypeOf {
  using type = int64_t;
};
template <class P>
struct TypeOf<P, Kind::boolean> {
  using type = bool;
};
template <class P>
struct TypeOf<P, Kind::integers> {
  using type = Integers;
};
template <class P>
struct TypeOf<P, Kind::tensor> {
  using type = typename P::Tensor;
};
template <class P>
struct TypeOf<P, Kind::tensors> {
  using type = typename P::Tensors;
};

template <class OpOfBinding, size_t kIndex>
using ArgumentOf = typename TypeOf<typename OpOfBinding::Policy, OpOfBinding::kArguments.all[kIndex].kind>::type;

}  // namespace resflow::bindings
