// The steps of a hidden layer around its product: initial sums, activation and affine, and the head after the last
// layer.
//
//   o_k^l = affine(act(o_k^{l-1} W_k^l + b_k^l)) + o_parent(k)^l
//
// The tower kernel and the small-batch kernel share them, so their results are bitwise equal.
#pragma once

#include "cuda/towers/call.h"
#include "cuda/towers/head.h"
#include "cuda/towers/input.h"
#include "cuda/towers/panel.h"
#include "cuda/towers/requests.h"

namespace resflow::cuda {

RESFLOW_DEVICE RowInfo row_info(const TowerCall& call, int64_t candidate) {
  const Candidates& candidates = call.candidates;
  RowInfo info{nullptr, nullptr, 1.0f, packed_for(call.plan, call.packed), 0};
  if (candidates.offsets) {
    info.request = request_of(candidates.offsets, candidates.requests, candidate);
    if (info.request < 0) info.scored = 0;
  }
  if (call.accum_init && info.scored)
    info.start = call.accum_init + info.request * call.plan.tasks * call.plan.first_padded();
  if (candidates.ids) {
    const int64_t id = load_constant(candidates.ids + candidate);
    if (id < 0 || id >= candidates.table.items) {
      info.scored = 0;
    } else {
      info.table = row_at(candidates.table.rows, id);
      if (candidates.table.scales) info.scale = load_constant(candidates.table.scales + id);
    }
  }
  return info;
}

// Sets each pair of sums to begin(row, column).
template <int kRows, class Begin>
RESFLOW_DEVICE void begin_sums(PanelSums<kRows>& sums, int width, Begin begin) {
  for_each_pair<kRows>(sums, width, [&](int row, int column, float& low, float& high) {
    const Pair start = begin(row, column);
    low = start.low;
    high = start.high;
  });
}

RESFLOW_DEVICE Pair load_pair(const float* from) { return load_constant(reinterpret_cast<const Pair*>(from)); }

// Reads the two values of a pair of columns from a catalog row, by one load if every row is aligned for it.
template <Precision kElement, bool kAtOnce>
RESFLOW_DEVICE Pair table_pair(const char* row, int64_t at) {
  if constexpr (!kAtOnce) {
    return {value_of(row, kElement, at), value_of(row, kElement, at + 1)};
  } else if constexpr (kElement == Precision::bfloat16) {
    const uint32_t word = load_constant(reinterpret_cast<const uint32_t*>(row) + at / 2);
    return {float_of_word(word << 16), float_of_word(word & 0xffff0000u)};
  } else if constexpr (kElement == Precision::int8) {
    const uint16_t word = load_constant(reinterpret_cast<const uint16_t*>(row) + at / 2);
    return {static_cast<float>(static_cast<int8_t>(word)), static_cast<float>(static_cast<int8_t>(word >> 8))};
  } else {
    static_assert(kElement == Precision::float32, "a precision of tables without its pair");
    return load_constant(reinterpret_cast<const Pair*>(row) + at / 2);
  }
}

// Calls run with the template arguments of table_pair for this table.
template <class Run>
RESFLOW_DEVICE void as_table(const Rows& table, Run run) {
  const int64_t pair_bytes = 2 * bytes_of(table.element);
  const int64_t places = reinterpret_cast<int64_t>(table.data) | table.stride * bytes_of(table.element);
  const bool at_once = places % pair_bytes == 0;
  with_precision<precision_flag::in_tables>(table.element, [&](auto element) {
    return at_once ? run.template operator()<element.value, true>() : run.template operator()<element.value, false>();
  });
}

// Initial sums of the first layer: the user's projection (the biases if there is none) plus the catalog row.
// `task_column` is the panel's first column in projections and tables, which concatenate the columns of all tasks.
struct FirstSums {
  const TowerCall& call;
  const RowInfo* rows;
  const float* biases;
  int64_t task_column;

  template <int kRows>
  RESFLOW_DEVICE void begin(PanelSums<kRows>& sums, int width) const {
    begin_sums<kRows>(sums, width, [&](int row, int64_t column) {
      const float* const start = rows[row].start;
      return start ? load_global(reinterpret_cast<const Pair*>(start + task_column + column))
                   : load_pair(biases + column);
    });
    if (!call.candidates.ids) return;
    as_table(call.candidates.table.rows, [&]<Precision kElement, bool kAtOnce>() {
      for_each_pair<kRows>(sums, width, [&](int row, int column, float& low, float& high) {
        const RowInfo& info = rows[row];
        if (!info.table) return;
        const Pair product = table_pair<kElement, kAtOnce>(info.table, task_column + column);
        low = fmaf(product.low, info.scale, low);
        high = fmaf(product.high, info.scale, high);
      });
    });
  }
};

template <Activation kActivation, int kRows>
RESFLOW_DEVICE void activate_sums(PanelSums<kRows>& sums, int width, const float* slopes) {
  for_each_pair<kRows>(sums, width, [&](int, int column, float& low, float& high) {
    Pair slope{};
    if constexpr (kActivation == Activation::prelu) slope = load_pair(slopes + column);
    low = activate<kActivation>(low, slope.low);
    high = activate<kActivation>(high, slope.high);
  });
}

template <int kRows>
RESFLOW_DEVICE void activate_sums(Activation activation, PanelSums<kRows>& sums, int width, const float* slopes) {
  with_activation(activation, [&](auto own) { activate_sums<own.value, kRows>(sums, width, slopes); });
}

// Applies affine(act(.)) to a panel's sums in place; `weights` is the task's packed block.
template <int kRows>
RESFLOW_DEVICE void finish_sums(bool affine, const LayerLayout& layer, const float* weights, int64_t panel, int width,
                                PanelSums<kRows>& sums) {
  const int64_t column = panel * kPanelWidth;
  activate_sums<kRows>(layer.activation, sums, width, weights + layer.slope + column);
  if (!affine) return;
  const float *const scales = weights + layer.scale + column, *const shifts = weights + layer.shift + column;
  for_each_pair<kRows>(sums, width, [&](int, int at, float& low, float& high) {
    const Pair scale = load_pair(scales + at), shift = load_pair(shifts + at);
    low = fmaf(low, scale.low, shift.low);
    high = fmaf(high, scale.high, shift.high);
  });
}

// Zeroes columns past a layer's width, which become NaN for an infinite input and must be zero in the next operand.
RESFLOW_DEVICE Pair within(const Pair& pair, int64_t column, int64_t width) {
  return {column < width ? pair.low : 0.0f, column + 1 < width ? pair.high : 0.0f};
}

template <Precision kPrecision, bool kShared>
RESFLOW_DEVICE void put_pair(const OperandWriter<kShared>& to, int row, int64_t column, const Pair& pair) {
  if constexpr (Numbers<kPrecision>::kPerWord == 2) {
    to.put(row, column / 2, Numbers<kPrecision>::word(pair.low, pair.high));
  } else {
    to.put(row, column, Numbers<kPrecision>::word(pair.low));
    to.put(row, column + 1, Numbers<kPrecision>::word(pair.high));
  }
}

// A task's logit of one row before the residual, hidden(column) . w + c, by a warp: every lane returns it.
template <class Hidden>
RESFLOW_DEVICE float head_logit(const Plan& plan, const float* weights, Hidden hidden) {
  const int64_t width = plan.layer[plan.layers - 1].width;
  float sum = 0.0f;
  for (int64_t column = thread_index() % 32; column < width; column += 32) {
    sum = fmaf(hidden(column), load_constant(weights + plan.head_weight + column), sum);
  }
  return warp_sum(sum) + load_constant(weights + plan.head_bias);
}

// Writes a candidate's outputs from its logits z [tasks], by one thread; NaN if it cannot be scored.
RESFLOW_DEVICE void write_outputs(const TowerCall& call, int64_t candidate, const RowInfo& info, const float* logits) {
  const int32_t tasks = call.plan.tasks;
  const int64_t row = weights_row(call.fusion.per, info.scored ? info.request : 0, candidate);
  const float* const weights = call.fusion.values + row * call.fusion_weight_count;
  const auto logit = [&](int32_t k) { return info.scored ? logits[k] : kNan; };
  const auto weight = [&](int32_t i) { return load_constant(weights + i); };
  if (call.logits) {
    for (int32_t k = 0; k < tasks; ++k) {
      store_global(call.logits + candidate * tasks + k, logit(k));
      store_global(call.probs + candidate * tasks + k, sigmoid(logit(k)));
    }
  }
  store_global(call.score + candidate, fuse(call.fusion.fusion, tasks, logit, weight));
}

}  // namespace resflow::cuda
