#include "core/pack.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/precision.h"
#include "core/quantize.h"
#include "core/tensor_panels.h"
#include "core/weights.h"

namespace resflow {
namespace {

struct Header {
  char magic[8];
  uint64_t fingerprint;
  char zero[kHeaderBytes - 16];
};
static_assert(sizeof(Header) == kHeaderBytes && sizeof(packed::magic) == sizeof(Header::magic) + 1);

Header header_of(const Plan& plan) {
  Header header{};
  std::memcpy(header.magic, packed::magic, sizeof(header.magic));
  header.fingerprint = plan.fingerprint;
  return header;
}

float column_scale(const float* column, int64_t inputs, int64_t width) {
  float largest = 0.0f;
  for (int64_t k = 0; k < inputs; ++k) largest = larger_magnitude(largest, column[k * width]);
  return int8_scale(largest);
}

// Packs weight [inputs, width] into panels of words; element(input, column) makes each element of a word.
template <class Element, class Make>
void pack_matrix(const LayerLayout& layer, float* panels, Make element) {
  constexpr int64_t kPerWord = sizeof(float) / sizeof(Element);
  auto* out = reinterpret_cast<Element*>(panels);
  for (int64_t first = 0; first < layer.padded; first += kPanelWidth) {
    const int64_t end = std::min(first + kPanelWidth, layer.padded);
    for (int64_t word = 0; word < layer.words; ++word) {
      for (int64_t column = first; column < end; ++column) {
        for (int64_t i = 0; i < kPerWord; ++i) *out++ = element(word * kPerWord + i, column);
      }
    }
  }
}

void pack_layer(const Plan& plan, const LayerLayout& layer, const float* weight, float* task) {
  const auto value = [&](int64_t input, int64_t column) {
    return input < layer.inputs && column < layer.width ? weight[input * layer.width + column] : 0.0f;
  };
  float* const panels = task + layer.panels;
  using namespace precision_flag;
  with_precision<on_cpu | on_gpu>(plan.precision, [&](auto p) {
    if constexpr (has(p.value, column_scales)) {
      float* const scales = task + layer.column_scale;
      for (int64_t c = 0; c < layer.width; ++c) scales[c] = column_scale(weight + c, layer.inputs, layer.width);
      pack_matrix<uint8_t>(layer, panels, [&](int64_t k, int64_t c) {
        return static_cast<uint8_t>(128 + int8_divide(value(k, c), scales[c]));
      });
    } else {
      pack_matrix<Stored<p.value>>(layer, panels,
                                   [&](int64_t k, int64_t c) { return StoredAs<p.value>::rounded(value(k, c)); });
    }
  });
}

// Writes the layer's tensor panels, whose padding is zero already.
void pack_tensor_panels(const Plan& plan, const LayerLayout& layer, const float* weight, char* out) {
  const TensorPanels panels{layer.inputs, layer.padded};
  with_precision<precision_flag::tensor_panels>(plan.precision, [&](auto p) {
    for (int64_t k = 0; k < layer.inputs; ++k) {
      for (int64_t c = 0; c < layer.width; ++c) {
        const auto element = StoredAs<p.value>::rounded(weight[k * layer.width + c]);
        std::memcpy(out + panels.byte_of(k, c), &element, sizeof(element));
      }
    }
  });
}

}  // namespace

int64_t weight_count(const Plan& plan) {
  int64_t count = 0;
  for_each_weight(plan, [&](const WeightShape&) { ++count; });
  return count;
}

// As messages have it: "task 0, layer 1, ".
static std::string place_of(const Plan& plan, const WeightShape& shape) {
  if (plan.program) return "step " + std::to_string(shape.layer) + ", ";
  const std::string place = shape.layer < 0 ? "head, " : "layer " + std::to_string(shape.layer) + ", ";
  return "task " + std::to_string(shape.task) + ", " + place;
}

void check_weights(const char* op, const Plan& plan, const TensorView* weights, int64_t count, bool transposed) {
  if (count != weight_count(plan)) {
    fail(op, "weights", expected::weight_count, std::to_string(count), std::to_string(weight_count(plan)));
  }
  int64_t at = 0;
  for_each_weight(plan, [&](const WeightShape& shape) {
    const TensorView& tensor = weights[at];
    const int64_t dim = shape.inputs ? 2 : 1;
    int64_t sizes[2] = {shape.inputs ? shape.inputs : shape.columns, shape.columns};
    if (shape.inputs && transposed) std::swap(sizes[0], sizes[1]);
    const std::string argument = "weights[" + std::to_string(at) + "] (" + place_of(plan, shape) +
                                 kWeightNames[static_cast<int>(shape.kind)] + ")";
    if (tensor.dim != dim || !std::equal(sizes, sizes + dim, tensor.sizes)) {
      fail(op, argument, expected::shape, list_text(tensor.sizes, tensor.dim), list_text(sizes, dim));
    }
    if (std::strcmp(tensor.dtype, "float32") != 0) fail(op, argument, expected::dtype, tensor.dtype, "float32");
    const bool rows_follow = dim == 1 || sizes[0] <= 1 || tensor.strides[0] == sizes[1];
    if ((sizes[dim - 1] > 1 && tensor.strides[dim - 1] != 1) || !rows_follow) {
      fail(op, argument, expected::contiguous, "strides " + list_text(tensor.strides, tensor.dim));
    }
    ++at;
  });
}

void pack_towers(const Plan& plan, const TensorView* weights, void* packed) {
  std::memset(packed, 0, plan.packed_bytes);
  const Header header = header_of(plan);
  std::memcpy(packed, &header, sizeof(header));
  auto* floats = reinterpret_cast<float*>(static_cast<char*>(packed) + kHeaderBytes);
  char* const tensor_panels = static_cast<char*>(packed) + plan.tensor_start;
  int64_t at = 0;
  for_each_weight(plan, [&](const WeightShape& shape) {
    const float* const from = weights[at++].as<float>();
    float* const block = floats + shape.task * plan.task_floats;
    if (shape.inputs) {
      const LayerLayout& layer = layer_of(plan, shape);
      pack_layer(plan, layer, from, block);
      if (!has_tensor_panels(plan.precision) || plan.program) return;
      pack_tensor_panels(plan, layer, from, tensor_panels + shape.task * plan.tensor_bytes + layer.tensor_panels);
    } else {
      std::memcpy(block + shape.offset, from, shape.columns * sizeof(float));
    }
  });
}

bool has_header_of(const Plan& plan, const void* packed) {
  const Header header = header_of(plan);
  return std::memcmp(packed, &header, sizeof(header)) == 0;
}

}  // namespace resflow
