// The ops of contract/ops.def, written once for all bindings: a form's inputs (core/forms.h) become a checked call, and
// a kernel of the form's model ends the call in scores or in the k best of each request.
//
// A binding is a policy class P. Each call of an op constructs one object of it, which provides:
//
//   P::Tensor                        an argument that is a tensor
//   P::Output                        a new tensor, with data<T>()
//   P::Unlocked                      an object of it exists while a kernel runs
//   P::towers_scores, ...            the kernels <model>_<ending>, and those of the ops that prepare inputs
//   op()                             the op's name
//   view(argument, tensor)           the view of a tensor that the checks read
//   rereads_values()                 whether the checks run again, on values that are in a GPU's memory
//   empty<T>(sizes)                  an Output of float, int64_t or uint8_t
//   empty_table(precision, sizes)    an Output for a table's rows
//   pack(plan, views, weights)       packed weights
//   resources()                      the last argument of kernels: a number of threads, or a GPU's queue
#pragma once

#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "bindings/schema.h"
#include "core/forms.h"
#include "core/pack.h"

namespace resflow::bindings {

using forms::Views;

// The types that the models' own arguments become.
namespace models {
using towers = ScoringArgs;
using twin = TwinArgs;
}  // namespace models

constexpr size_t argument_count(std::string_view list) { return arguments_of(list).count; }

// An op's results: new tensors, which a kernel fills.
namespace endings {

template <class P>
struct scores {
  typename P::Output logits, probs, score;

  template <class Call>
  scores(P& policy, const Call& call)
      : logits(policy.template empty<float>({call.scored(), call.tasks()})),
        probs(policy.template empty<float>({call.scored(), call.tasks()})),
        score(policy.template empty<float>({call.scored()})) {}
  ScoresOut out() {
    return {logits.template data<float>(), probs.template data<float>(), score.template data<float>()};
  }
  auto results() { return std::tuple(std::move(logits), std::move(probs), std::move(score)); }
};

template <class P>
struct topk {
  int64_t k;
  typename P::Output scores, positions;

  template <class Call>
  topk(P& policy, const Call& call, int64_t k)
      : k((check_positive(policy.op(), "k", k), k)),
        scores(policy.template empty<float>({call.request_count(), k})),
        positions(policy.template empty<int64_t>({call.request_count(), k})) {}
  TopKOut out() { return {k, scores.template data<float>(), positions.template data<int64_t>()}; }
  auto results() { return std::tuple(std::move(scores), std::move(positions)); }
};

}  // namespace endings

template <class PolicyOfOp, Text kSchema>
struct Op {
  using Policy = PolicyOfOp;
  static constexpr Arguments kArguments = arguments_of(kSchema.view());
  static constexpr auto kNameText = Text<kSchema.view().find('(')>(kSchema.view());
  static constexpr const char* kName = kNameText.characters;

  // The type of a binding function's argument, by its Kind.
  using Types = std::tuple<typename Policy::Tensor, std::vector<typename Policy::Tensor>, Integers, int64_t, bool,
                           std::optional<typename Policy::Tensor>>;
  template <size_t kIndex>
  using ArgumentOf = std::tuple_element_t<static_cast<size_t>(kArguments.all[kIndex].kind), Types>;
};

// Converts an argument to what the checks take.
template <class P, class Input>
decltype(auto) view_of(P& call, std::string_view name, const Input& input) {
  if constexpr (std::is_same_v<Input, typename P::Tensor>) {
    return call.view(name, input);
  } else if constexpr (std::is_same_v<Input, std::vector<typename P::Tensor>>) {
    Views views;
    views.reserve(input.size());
    for (const auto& tensor : input) views.push_back(call.view(name, tensor));
    return views;
  } else if constexpr (std::is_same_v<Input, std::optional<typename P::Tensor>>) {
    return input ? std::optional<TensorView>(call.view(name, *input)) : std::nullopt;
  } else {
    return (input);
  }
}

// Calls function with kCount elements of a tuple, from kFirst on.
template <size_t kFirst, size_t kCount, class All, class Function>
auto apply_part(const All& all, Function function) {
  return [&]<size_t... I>(std::index_sequence<I...>) {
    return function(std::get<kFirst + I>(all)...);
  }(std::make_index_sequence<kCount>());
}

template <class P, class Form, size_t kOptions, class Model, size_t kModelArguments, class Ending,
          size_t kEndingArguments, auto kKernel, Text kSchema>
struct ScoringOp : Op<P, kSchema> {
  template <class... T>
  static auto run(P& call, const T&... arguments) {
    constexpr size_t kAll = sizeof...(T), kInputs = kAll - kModelArguments - kEndingArguments - kOptions;
    const auto parse = [&](Form& form) {
      const auto views = views_of(call, std::index_sequence_for<T...>(), arguments...);
      const auto args =
          apply_part<kInputs, kModelArguments>(views, [&](const auto&... own) { return Model{call.op(), own...}; });
      return apply_part<kAll - kOptions, kOptions>(views, [&](const auto&... option) {
        return apply_part<0, kInputs>(views,
                                      [&](const auto&... input) { return form.parse(args, input..., option...); });
      });
    };
    Form form;
    const auto checked = parse(form);
    if (call.rereads_values()) {
      Form again;
      parse(again);
    }
    auto ending = apply_part<kInputs + kModelArguments, kEndingArguments>(
        std::tie(arguments...), [&](const auto&... own) { return Ending(call, checked, own...); });
    const auto out = ending.out();
    {
      [[maybe_unused]] const typename P::Unlocked unlocked;
      kKernel(checked, out, call.resources());
    }
    return ending.results();
  }

 private:
  template <size_t... I, class... T>
  static auto views_of(P& call, std::index_sequence<I...>, const T&... arguments) {
    // In a braced list the calls are evaluated in order.
    return std::tuple<decltype(view_of(call, {}, arguments))...>{
        view_of(call, ScoringOp::kArguments.all[I].name, arguments)...};
  }
};

// Returns a table's rows and the scales of int8 ones, as filled by write(precision, rows, scales).
template <class P, class Write>
auto table_rows(P& call, int64_t dtype, int64_t count, int64_t width, std::initializer_list<int64_t> scale_sizes,
                Write write) {
  const auto precision = static_cast<Precision>(dtype);
  auto table = call.empty_table(precision, {count, width});
  auto scales = call.template empty<float>(scale_sizes);
  auto* const rows = table.template data<void>();
  auto* const scales_data = scales.template data<float>();
  {
    [[maybe_unused]] const typename P::Unlocked unlocked;
    write(precision, rows, scales_data);
  }
  return std::tuple(std::move(table), std::move(scales));
}

constexpr int64_t scaled_rows(int64_t dtype, int64_t count) {
  return dtype == static_cast<int64_t>(Precision::int8) ? count : 0;
}

// The ops by name: those of forms, and those that prepare a form's inputs.
namespace ops {

#define RESFLOW_FORM(form, model, inputs, topk_inputs, options, flags)                                                \
  template <class P, auto kKernel>                                                                                    \
  using form##_scores = ScoringOp<P, forms::form, argument_count(options), models::model,                             \
                                  argument_count(schemas::model##_arguments.view()), endings::scores<P>,              \
                                  argument_count(schemas::scores_arguments.view()), kKernel, schemas::form##_scores>; \
  template <class P, auto kKernel>                                                                                    \
  using form##_topk = ScoringOp<P, forms::form, argument_count(options), models::model,                               \
                                argument_count(schemas::model##_arguments.view()), endings::topk<P>,                  \
                                argument_count(schemas::topk_arguments.view()), kKernel, schemas::form##_topk>;
#include "contract/ops.def"

template <class P>
struct pack_towers : Op<P, schemas::pack_towers> {
  static auto run(P& call, const std::vector<typename P::Tensor>& weights, const Integers& encoded) {
    const Plan& plan = decoded(call.op(), encoded);
    const Views views = view_of(call, "weights", weights);
    check_weights(call.op(), plan, views.data(), static_cast<int64_t>(views.size()));
    return call.pack(plan, views, weights);
  }
};

template <class P>
struct program_outputs : Op<P, schemas::program_outputs> {
  static auto run(P& call, const typename P::Tensor& x, const typename P::Tensor& packed, const Integers& encoded) {
    const Plan& plan = decoded(call.op(), encoded);
    const TensorView rows = call.view("x", x), weights = call.view("packed", packed);
    check_program_outputs(call.op(), plan, rows, weights);
    if (call.rereads_values()) check_packed(call.op(), plan, call.view("packed", packed));
    auto outputs = call.template empty<float>({rows.sizes[0], plan.program->output_columns});
    [[maybe_unused]] const typename P::Unlocked unlocked;
    P::program_outputs({plan, weights.data}, rows_of(rows), rows.sizes[0], outputs.template data<float>(),
                       call.resources());
    return outputs;
  }
};

template <class P>
struct catalog_rows : Op<P, schemas::catalog_rows> {
  static auto run(P& call, const typename P::Tensor& item, const typename P::Tensor& packed, const Integers& encoded,
                  int64_t dtype) {
    const Plan& plan = decoded(call.op(), encoded);
    const TensorView items = call.view("item", item), weights = call.view("packed", packed);
    check_catalog_rows(call.op(), plan, items, weights, dtype);
    if (call.rereads_values()) check_packed(call.op(), plan, call.view("packed", packed));
    const int64_t count = items.sizes[0], width = table_width(plan, items.sizes[1]);
    return table_rows(call, dtype, count, width, {scaled_rows(dtype, count)},
                      [&](auto precision, auto* rows, auto* scales) {
                        P::catalog_rows({plan, weights.data}, rows_of(items), count, items.sizes[1], precision, rows,
                                        scales, call.resources());
                      });
  }
};

template <class P>
struct twin_rows : Op<P, schemas::twin_rows> {
  static auto run(P& call, const typename P::Tensor& vectors, int64_t tasks, int64_t dtype) {
    const TensorView view = call.view("vectors", vectors);
    check_twin_rows(call.op(), view, tasks, dtype);
    const int64_t count = view.sizes[0], width = view.sizes[1];
    return table_rows(
        call, dtype, count, width, {scaled_rows(dtype, count), tasks}, [&](auto precision, auto* rows, auto* scales) {
          P::twin_rows(rows_of(view), count, tasks, width / tasks, precision, rows, scales, call.resources());
        });
  }
};

}  // namespace ops
}  // namespace resflow::bindings
