// Ops as PyTorch's dispatcher calls them: with a stack of StableIValue. What TORCH_BOX does, but tensors and lists are
// taken as they are: TORCH_BOX counts each tensor's references, copies the arguments, and the results twice.
#pragma once

#include <torch/csrc/stable/library.h>

#include <iterator>
#include <memory>
#include <tuple>
#include <vector>

#include "bindings/op.h"
#include "torch/tensor.h"

namespace resflow::torch_ops {

struct DeleteTensor {
  void operator()(AtenTensorOpaque* tensor) const { aoti_torch_delete_tensor_object(tensor); }
};
using OwnedTensor = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;

struct DeleteList {
  void operator()(StableListOpaque* list) const { torch_delete_list(list); }
};

// An op's result, [rows] or [rows, columns].
class Output {
 public:
  Output(ScalarType type, std::initializer_list<int64_t> sizes, DeviceType device = DeviceType::CPU, int32_t index = 0)
      : tensor_(new_tensor(type, sizes, device, index)) {}
  explicit Output(OwnedTensor tensor) : tensor_(std::move(tensor)) {}

  template <class T>
  T* data() const {
    void* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor_.get(), &data));
    return static_cast<T*>(data);
  }
  AtenTensorHandle get() const { return tensor_.get(); }
  AtenTensorHandle release() { return tensor_.release(); }

 private:
  OwnedTensor tensor_;
};

template <class T>
constexpr ScalarType kTypeOf = ScalarType::Float;
template <>
inline constexpr ScalarType kTypeOf<int64_t> = ScalarType::Long;
template <>
inline constexpr ScalarType kTypeOf<uint8_t> = ScalarType::Byte;

// What a table's rows are stored as.
inline ScalarType table_type(Precision precision) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Char};
  static_assert(std::size(kTypes) == kTableElements, "a precision of contract/enums.def without its dtype");
  return kTypes[static_cast<int>(precision)];
}

// An argument off the stack, whose owner the result is.
template <class T>
struct Taken {
  static T from(StableIValue value) { return torch::stable::detail::to<T>(value); }
};
template <>
struct Taken<OwnedTensor> {
  static OwnedTensor from(StableIValue value) {
    return OwnedTensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
};
template <class T>
struct Taken<std::vector<T>> {
  static std::vector<T> from(StableIValue value) {
    const std::unique_ptr<StableListOpaque, DeleteList> list(torch::stable::detail::to<StableListHandle>(value));
    size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list.get(), &size));
    std::vector<T> all;
    all.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue element{};
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list.get(), i, &element));
      all.push_back(Taken<T>::from(element));
    }
    return all;
  }
};

template <class... Results>
void put(StableIValue* stack, std::tuple<Results...> results) {
  std::apply([&](auto&... result) { ((*stack++ = torch::stable::detail::from(result.release())), ...); }, results);
}
inline void put(StableIValue* stack, Output result) { put(stack, std::tuple(std::move(result))); }

template <class Op, size_t... I>
void run_on(StableIValue* stack, std::index_sequence<I...>) {
  const std::tuple<bindings::ArgumentOf<Op, I>...> arguments{Taken<bindings::ArgumentOf<Op, I>>::from(stack[I])...};
  typename Op::Policy call(Op::kName, std::get<I>(arguments)...);
  put(stack, Op::run(call, std::get<I>(arguments)...));
}

template <class Op>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  run_on<Op>(stack, std::make_index_sequence<Op::kArguments.count>());
}

template <class Op>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl(Op::kName, boxed<Op>);
}

}  // namespace resflow::torch_ops
