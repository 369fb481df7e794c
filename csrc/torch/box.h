// Boxed ops: PyTorch's dispatcher calls them with a stack of StableIValue. They do what TORCH_BOX does, but take over
// tensors and lists as they are: TORCH_BOX counts references to each tensor, and copies the arguments once and the
// results twice.
#pragma once

#include <torch/csrc/stable/library.h>

#include <memory>
#include <optional>

#include "bindings/op.h"
#include "core/precision.h"
#include "torch/tensor.h"

namespace resflow::torch_ops {

struct Deleted {
  void operator()(AtenTensorOpaque* tensor) const { aoti_torch_delete_tensor_object(tensor); }
  void operator()(StableListOpaque* list) const { torch_delete_list(list); }
};
using OwnedTensor = std::unique_ptr<AtenTensorOpaque, Deleted>;

// A new tensor [rows] or [rows, columns].
struct Output : OwnedTensor {
  Output(ScalarType type, std::initializer_list<int64_t> sizes, DeviceType device = DeviceType::CPU, int32_t index = 0)
      : OwnedTensor(new_tensor(type, sizes, device, index)) {}

  template <class T>
  T* data() const {
    void* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(get(), &data));
    return static_cast<T*>(data);
  }
};

template <class T>
constexpr ScalarType kTypeOf = std::is_same_v<T, float>     ? ScalarType::Float
                               : std::is_same_v<T, int64_t> ? ScalarType::Long
                                                            : ScalarType::Byte;

template <>
inline constexpr ScalarType kTypeOf<uint16_t> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType kTypeOf<int8_t> = ScalarType::Char;

// The dtype of a table's rows.
inline ScalarType table_type(Precision precision) {
  return with_precision<precision_flag::in_tables>(precision, [](auto p) { return kTypeOf<Stored<p.value>>; });
}

// Takes an argument off the stack; the caller owns it.
template <class T>
T taken(StableIValue value) {
  if constexpr (std::is_same_v<T, OwnedTensor>) {
    return OwnedTensor(torch::stable::detail::to<AtenTensorHandle>(value));
  } else if constexpr (std::is_same_v<T, std::optional<OwnedTensor>>) {
    const auto tensor = torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
    return tensor ? T(OwnedTensor(*tensor)) : T();
  } else if constexpr (requires { typename T::value_type; }) {
    const std::unique_ptr<StableListOpaque, Deleted> list(torch::stable::detail::to<StableListHandle>(value));
    size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list.get(), &size));
    T all(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue element{};
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list.get(), i, &element));
      all[i] = taken<typename T::value_type>(element);
    }
    return all;
  } else {
    return torch::stable::detail::to<T>(value);
  }
}

template <class... Outputs>
void put(StableIValue* stack, std::tuple<Outputs...> results) {
  std::apply([&](auto&... own) { ((*stack++ = torch::stable::detail::from(own.release())), ...); }, results);
}
inline void put(StableIValue* stack, Output result) { *stack = torch::stable::detail::from(result.release()); }

template <class Op>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  [&]<size_t... I>(std::index_sequence<I...>) {
    const std::tuple<typename Op::template ArgumentOf<I>...> arguments{
        taken<typename Op::template ArgumentOf<I>>(stack[I])...};
    typename Op::Policy call(Op::kName, std::get<I>(arguments)...);
    put(stack, Op::run(call, std::get<I>(arguments)...));
  }(std::make_index_sequence<Op::kArguments.count>());
}

template <class Op>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl(Op::kName, boxed<Op>);
}

}  // namespace resflow::torch_ops
