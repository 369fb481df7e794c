// The schemas of contract/ops.def as constants, and the arguments they list.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

namespace resflow::bindings {

// A text that can be a template argument.
template <size_t kSize>
struct Text {
  char characters[kSize + 1] = {};

  constexpr Text() = default;
  constexpr Text(const char (&text)[kSize + 1]) { std::copy_n(text, kSize, characters); }
  constexpr explicit Text(std::string_view text) { std::copy_n(text.data(), kSize, characters); }
  constexpr std::string_view view() const { return {characters, kSize}; }
  template <size_t kOther>
  constexpr Text<kSize + kOther> operator+(const Text<kOther>& other) const {
    Text<kSize + kOther> sum;
    std::copy_n(other.characters, kOther, std::copy_n(characters, kSize, sum.characters));
    return sum;
  }
};
template <size_t kArraySize>
Text(const char (&)[kArraySize]) -> Text<kArraySize - 1>;

enum class Kind { tensor, tensors, integers, integer, boolean, optional_tensor };

struct Argument {
  std::string_view name;
  Kind kind;
};

struct Arguments {
  std::array<Argument, 24> all{};
  size_t count = 0;
};

constexpr Kind kind_of(std::string_view type) {
  if (type == "Tensor") return Kind::tensor;
  if (type == "Tensor[]") return Kind::tensors;
  if (type == "int[]") return Kind::integers;
  if (type == "Tensor?") return Kind::optional_tensor;
  if (type == "bool") return Kind::boolean;
  return type == "int" ? Kind::integer : throw "a type of contract/ops.def that no op has taken so far";
}

// Returns the arguments of a schema, "name(Tensor x, int[] plan) -> Tensor", or of a part of one, ", int k=1".
constexpr Arguments arguments_of(std::string_view text) {
  Arguments arguments;
  text = text.substr(0, text.find(')'));
  text.remove_prefix(text.find('(') + 1);  // without '(': npos + 1 is 0
  while (true) {
    text.remove_prefix(std::min(text.find_first_not_of(", "), text.size()));
    if (text.empty()) return arguments;
    const std::string_view own = text.substr(0, text.find(','));
    const size_t space = own.find(' ');
    const std::string_view name = own.substr(space + 1);
    arguments.all[arguments.count++] = {name.substr(0, name.find('=')), kind_of(own.substr(0, space))};
    text.remove_prefix(own.size());
  }
}

// Every op's schema by its name, and the arguments of each model and ending.
namespace schemas {
#define RESFLOW_MODEL(model, arguments) constexpr Text model##_arguments(arguments);
#define RESFLOW_ENDING(ending, arguments, results) \
  constexpr Text ending##_arguments(arguments);    \
  constexpr Text ending##_results(") -> " results);
#define RESFLOW_FORM(form, model, inputs, topk_inputs, options, flags)                                             \
  constexpr Text form##_options(options);                                                                          \
  constexpr auto form##_scores =                                                                                   \
      Text(#form "_scores(" inputs ", ") + model##_arguments + scores_arguments + form##_options + scores_results; \
  constexpr auto form##_topk = Text(#form "_topk(" inputs topk_inputs ", ") + model##_arguments + topk_arguments + \
                               form##_options + topk_results;
#define RESFLOW_OP(name, schema) constexpr Text name(#name schema);
#define RESFLOW_TRAINING_OP(name, schema) constexpr Text name(#name schema);
#include "contract/ops.def"
}  // namespace schemas

}  // namespace resflow::bindings
