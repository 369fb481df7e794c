#include "core/pack.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace resflow {
namespace {

struct Header {
  char magic[8];
  uint64_t fingerprint;
  char zero[kHeaderBytes - 16];
};
static_assert(sizeof(Header) == kHeaderBytes);

Header header_of(const Plan& plan) {
  Header header{};
  std::memcpy(header.magic, "RESFLOW1", sizeof(header.magic));
  header.fingerprint = plan.fingerprint;
  return header;
}

// Visits the canonical weights in order: visit(task, layer or -1 for the head, name, rows or 0, columns, offset).
template <class Visit>
void for_each_weight(const Plan& plan, Visit visit) {
  for (int32_t k = 0; k < plan.tasks; ++k) {
    for (int32_t l = 0; l < plan.layers; ++l) {
      const LayerLayout& layer = plan.layer[l];
      visit(k, l, "weight", layer.inputs, layer.width, layer.panels);
      visit(k, l, "bias", int64_t{0}, layer.width, layer.bias);
      if (layer.activation == Activation::prelu) visit(k, l, "slope", int64_t{0}, layer.width, layer.slope);
      if (plan.affine) {
        visit(k, l, "scale", int64_t{0}, layer.width, layer.scale);
        visit(k, l, "shift", int64_t{0}, layer.width, layer.shift);
      }
    }
    visit(k, -1, "weight", int64_t{0}, plan.layer[plan.layers - 1].width, plan.head_weight);
    visit(k, -1, "bias", int64_t{0}, int64_t{1}, plan.head_bias);
  }
}

void pack_matrix(const float* weight, int64_t inputs, int64_t width, float* panels) {
  const int64_t padded = pad_to_lane(width);
  for (int64_t first = 0; first < padded; first += kPanelWidth) {
    const int64_t lanes = std::min(kPanelWidth, padded - first);
    const int64_t real = std::min(lanes, width - first);
    for (int64_t k = 0; k < inputs; ++k) {
      std::memcpy(panels, weight + k * width + first, real * sizeof(float));
      panels += lanes;
    }
  }
}

}  // namespace

int64_t weight_count(const Plan& plan) {
  int64_t count = 0;
  for_each_weight(plan, [&](auto...) { ++count; });
  return count;
}

void check_weights(const char* op, const Plan& plan, const TensorView* weights, int64_t count) {
  if (count != weight_count(plan)) {
    complain(op, "weights", expected::weight_count, std::to_string(count), std::to_string(weight_count(plan)));
  }
  int64_t at = 0;
  for_each_weight(plan, [&](int32_t task, int32_t layer, const char* name, int64_t rows, int64_t columns, int64_t) {
    const TensorView& tensor = weights[at];
    const int64_t sizes[2] = {rows ? rows : columns, columns};
    const int64_t dim = rows ? 2 : 1;
    const std::string place = layer < 0 ? "head" : "layer " + std::to_string(layer);
    const std::string argument =
        "weights[" + std::to_string(at) + "] (task " + std::to_string(task) + ", " + place + ", " + name + ")";
    if (tensor.dim != dim || !std::equal(sizes, sizes + dim, tensor.sizes)) {
      complain(op, argument, expected::shape, list_text(tensor.sizes, tensor.dim), list_text(sizes, dim));
    }
    if (std::strcmp(tensor.dtype, "float32") != 0) complain(op, argument, expected::dtype, tensor.dtype, "float32");
    const bool rows_follow = dim == 1 || rows <= 1 || tensor.strides[0] == columns;
    if ((columns > 1 && tensor.strides[dim - 1] != 1) || !rows_follow) {
      complain(op, argument, expected::contiguous, "strides " + list_text(tensor.strides, tensor.dim));
    }
    ++at;
  });
}

void pack_towers(const Plan& plan, const TensorView* weights, void* packed) {
  std::memset(packed, 0, plan.packed_bytes);
  const Header header = header_of(plan);
  std::memcpy(packed, &header, sizeof(header));
  auto* floats = reinterpret_cast<float*>(static_cast<char*>(packed) + kHeaderBytes);
  int64_t at = 0;
  for_each_weight(plan, [&](int32_t task, int32_t, const char*, int64_t rows, int64_t columns, int64_t offset) {
    const float* from = weights[at++].as<float>();
    float* to = floats + task * plan.task_floats + offset;
    if (rows) {
      pack_matrix(from, rows, columns, to);
    } else {
      std::memcpy(to, from, columns * sizeof(float));
    }
  });
}

bool has_header_of(const Plan& plan, const void* packed) {
  const Header header = header_of(plan);
  return std::memcmp(packed, &header, sizeof(header)) == 0;
}

}  // namespace resflow
