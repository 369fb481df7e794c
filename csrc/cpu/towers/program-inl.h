// Runs a tile program (contract/program.def) on one tile while its values are in cache.
//
// Every number of a candidate is computed from the candidate's own values in an order that does not depend on its place
// in the tile: its outputs do not depend on its neighbors.
#pragma once

#include <cstddef>

#include "core/program.h"

namespace resflow::cpu::RESFLOW_TARGET {

// Some columns of all rows of a tile.
struct Columns {
  const float* first;
  int64_t stride;
  int64_t width;

  const float* row(int64_t r) const { return first + r * stride; }
};

// How many of a segment's columns lie before a column of their value.
inline int64_t columns_before(const Segment& segment, int64_t column) {
  const int64_t before = column - segment.column;
  return before < 0 ? 0 : before < segment.width ? before : segment.width;
}

inline Columns columns_of(const Tile& tile, const Segment& segment) {
  if (segment.value == 0) {
    return {static_cast<const float*>(tile.row.data) + segment.column, tile.row.stride, segment.width};
  }
  const ValuePlace& value = tile.plan->program->values[segment.value];
  return {tile.hidden + value.place * tile.rows + segment.column, value.padded, segment.width};
}

inline void copy_floats(const float* from, int64_t count, float* to) {
  for (int64_t c = 0; c < count; c += kLane) {
    if (count - c >= kLane) {
      store(to + c, load(from + c));
    } else {
      __builtin_memcpy(to + c, from + c, static_cast<std::size_t>(count - c) * sizeof(float));
    }
  }
}

// The segments one after another, of all rows: in place if there is one of them, copied into `to` otherwise.
inline Columns gather(const Tile& tile, const Segments& segments, int64_t columns, float* to) {
  if (segments.count == 1) return columns_of(tile, segments.all[0]);
  const int64_t stride = pad_to_lane(columns);
  int64_t at = 0;
  for (const Segment& segment : segments) {
    const Columns from = columns_of(tile, segment);
    for (int64_t r = 0; r < tile.rows; ++r) copy_floats(from.row(r), from.width, to + r * stride + at);
    at += segment.width;
  }
  return {to, stride, columns};
}

// What the lanes of `column` and on are of a row of `width` columns: those past it are zero.
inline Lanes lanes_of(const float* row, int64_t column, int64_t width) {
  return column < width ? load_values(row + column, width - column) : broadcast(0.0f);
}

// Multiplies and adds a step's factors and addends to a block of its result; `out` is the block's first row.
inline void combine(const Tile& tile, const Step& step, int64_t row, const Block& block, float* out) {
  const int64_t end = block.column + block.width, stride = step.layer.padded;
  for (const Segment& segment : step.factors) {
    const Columns factor = columns_of(tile, segment);
    const int64_t repeated = step.width / factor.width;
    for (int64_t r = 0; r < block.rows; ++r) {
      float* const to = out + r * stride;
      const float* const from = factor.row(row + r);
      if (repeated == 1) {
        for (int64_t c = block.column; c < end; c += kLane) store(to + c, load(to + c) * lanes_of(from, c, step.width));
      } else if (factor.width == 1) {
        const Lanes all = broadcast(from[0]);
        for (int64_t c = block.column; c < end; c += kLane) store(to + c, load(to + c) * all);
      } else {
        for (int64_t c = block.column; c < end && c < step.width; ++c) to[c] *= from[c / repeated];
      }
    }
  }
  for (const Segment& segment : step.addends) {
    const Columns addend = columns_of(tile, segment);
    for (int64_t r = 0; r < block.rows; ++r) {
      float* const to = out + r * stride;
      const float* const from = addend.row(row + r);
      for (int64_t c = block.column; c < end; c += kLane) store(to + c, load(to + c) + lanes_of(from, c, step.width));
    }
  }
}

// A step's own result, before its activation: [rows][padded].
struct ResultRows {
  const float* rows;
  int64_t stride;

  Lanes operator()(int64_t row, int64_t column) const { return in_register(load(rows + row * stride + column)); }
};

// A number per row of `width` columns, from(lanes) summed over them in order.
template <class From>
inline float sum_of(const float* row, int64_t width, From from) {
  Lanes sum = broadcast(0.0f);
  int64_t c = 0;
  for (; c + kLane <= width; c += kLane) sum = sum + from(load(row + c));
  float total = horizontal_sum(sum);
  for (; c < width; ++c) {
    float lanes[kLane];
    store(lanes, from(broadcast(row[c])));
    total += lanes[0];
  }
  return total;
}

inline void softmax_row(const float* in, int64_t width, float* out) {
  float largest = in[0];
  for (int64_t c = 1; c < width; ++c) largest = in[c] > largest ? in[c] : largest;
  float total = 0.0f, lanes[kLane];
  for (int64_t c = 0; c < width; c += kLane) {
    const int64_t left = width - c < kLane ? width - c : kLane;
    store(lanes, exp(load_values(in + c, left) - broadcast(largest)));
    for (int64_t i = 0; i < left; ++i) total += out[c + i] = lanes[i];
  }
  for (int64_t c = 0; c < width; ++c) out[c] /= total;
}

inline void norm_row(StepKind kind, const float* in, int64_t width, float epsilon, float* out) {
  const auto square = [](Lanes value) { return value * value; };
  const auto itself = [](Lanes value) { return value; };
  const float count = static_cast<float>(width);
  float mean = 0.0f, over = 1.0f;
  if (kind == StepKind::layer_norm) {
    mean = sum_of(in, width, itself) / count;
    const Lanes center = broadcast(mean);
    const auto deviation = [&](Lanes value) { return (value - center) * (value - center); };
    over = __builtin_sqrtf(sum_of(in, width, deviation) / count + epsilon);
  } else {
    const float squares = sum_of(in, width, square);
    if (kind == StepKind::rms_norm) {
      over = __builtin_sqrtf(squares / count + epsilon);
    } else {
      const float length = __builtin_sqrtf(squares);
      over = length < epsilon ? epsilon : length;
    }
  }
  for (int64_t c = 0; c < width; ++c) out[c] = (in[c] - mean) / over;
}

inline float dot_product(const float* a, const float* b, int64_t width) {
  Lanes sum = broadcast(0.0f);
  for (int64_t c = 0; c < width; c += kLane) {
    sum = multiply_add(load_values(a + c, width - c), load_values(b + c, width - c), sum);
  }
  return horizontal_sum(sum);
}

inline void dot_row(const float* fields, int64_t count, int64_t width, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = i + 1; j < count; ++j) *out++ = dot_product(fields + i * width, fields + j * width, width);
  }
}

inline void fm_row(const float* fields, int64_t count, int64_t width, float* out) {
  for (int64_t c = 0; c < width; c += kLane) {
    Lanes sum = broadcast(0.0f), squares = broadcast(0.0f);
    for (int64_t f = 0; f < count; ++f) {
      const Lanes value = load_values(fields + f * width + c, width - c);
      sum = sum + value;
      squares = multiply_add(value, value, squares);
    }
    store(out + c, broadcast(0.5f) * (sum * sum - squares));
  }
}

inline void mix_rows(const Tile& tile, const Step& step, float* out) {
  const Columns gates = columns_of(tile, step.inputs.all[0]);
  for (int64_t e = 1; e < step.inputs.count; ++e) {
    const Columns value = columns_of(tile, step.inputs.all[e]);
    for (int64_t r = 0; r < tile.rows; ++r) {
      float* const to = out + r * step.layer.padded;
      const Lanes gate = broadcast(gates.row(r)[e - 1]);
      for (int64_t c = 0; c < step.width; c += kLane) {
        const Lanes before = e == 1 ? broadcast(0.0f) : load(to + c);
        store(to + c, multiply_add(gate, load_values(value.row(r) + c, step.width - c), before));
      }
    }
  }
}

// The core of a step that reads one row of inputs and has no weights.
inline void run_row(const Step& step, const float* in, float* out) {
  const int64_t width = step.columns / step.groups;
  switch (step.kind) {
    case StepKind::copy:
      return copy_floats(in, step.columns, out);
    case StepKind::softmax:
      for (int64_t g = 0; g < step.groups; ++g) softmax_row(in + g * width, width, out + g * width);
      return;
    case StepKind::sum:
      for (int64_t g = 0; g < step.groups; ++g) {
        out[g] = sum_of(in + g * width, width, [](Lanes value) { return value; });
      }
      return;
    case StepKind::layer_norm:
    case StepKind::rms_norm:
    case StepKind::l2_norm:
      for (int64_t g = 0; g < step.groups; ++g)
        norm_row(step.kind, in + g * width, width, step.epsilon, out + g * width);
      return;
    case StepKind::fm:
      return fm_row(in, step.groups, width, out);
    case StepKind::dot:
      return dot_row(in, step.groups, width, out);
    case StepKind::linear:
    case StepKind::mix:
    case StepKind::count:
      return;
  }
}

inline Epilogue epilogue_of(const Tile& tile, const Step& step) {
  const LayerLayout& layer = step.layer;
  return {layer.activation == Activation::prelu ? tile.weights + layer.slope : nullptr,
          step.affine ? tile.weights + layer.scale : nullptr, step.affine ? tile.weights + layer.shift : nullptr,
          nullptr};
}

// Whether the sums of the user's columns are there already.
template <Precision kPrecision>
inline bool has_user_sums(const Tile& tile, const Step& step) {
  return kPrecision != Precision::int8 && step.user_sums >= 0 && tile.first_input > 0;
}

// A linear step's inputs: columns of the input row where they lie, without those of the user, or values, gathered.
template <Precision kPrecision>
inline FirstLayerRows input_rows(const Tile& tile, const Step& step) {
  const int64_t columns = step.columns;
  if (step.user_sums >= 0 && (kPrecision != Precision::int8 || tile.first_input == 0)) {
    const Segment& segment = step.inputs.all[0];
    const int64_t before = columns_before(segment, tile.first_input);
    const Rows rows = tile.x.from_column(before < columns ? segment.column + before - tile.first_input : 0);
    return first_layer_rows<kPrecision>(rows, tile.rows, before, columns - before, tile.hidden_operand);
  }
  const Columns in = gather(tile, step.inputs, columns, tile.gathered);
  return first_layer_rows<kPrecision>({in.first, Precision::float32, in.stride}, tile.rows, 0, columns,
                                      tile.hidden_operand);
}

// A linear step of the catalog form that has user_sums: its sums are the user's and those of the item's row.
template <class Table>
inline void look_up_step(const Tile& tile, const Step& step, float* out, Prefetcher& prefetcher) {
  const LayerLayout& layer = step.layer;
  const Epilogue epilogue = epilogue_of(tile, step);
  for (int64_t r = 0; r < tile.rows; r += kBlockRows) {
    const Block block{tile.rows - r < kBlockRows ? tile.rows - r : kBlockRows, 0, layer.padded};
    const TableSums<Table> sums{tile.table_rows + r, tile.table_scales + r, tile.accum_init + r, step.user_sums,
                                tile.user_sums + step.user_sums};
    float* const to = out + r * layer.padded;
    finish(layer.activation, epilogue, sums, block, to, layer.padded);
    combine(tile, step, r, block, to);
    for (int64_t panel = 0; panel < layer.padded; panel += kPanelWidth) prefetcher.prefetch_some();
  }
}

template <Precision kPrecision>
inline void run_linear(const Tile& tile, const Step& step, float* out, Prefetcher& prefetcher) {
  if (tile.table_rows && step.user_sums >= 0) {
    return with_precision<precision_flag::in_tables>(
        tile.table_element, [&](auto element) { look_up_step<Stored<element.value>>(tile, step, out, prefetcher); });
  }
  const LayerLayout& layer = step.layer;
  const auto [first_word, words, operand] = input_rows<kPrecision>(tile, step);
  const AccumInit start = has_user_sums<kPrecision>(tile, step)
                              ? AccumInit{nullptr, tile.accum_init, tile.user_sums + step.user_sums}
                              : AccumInit{tile.weights + layer.bias};
  const Epilogue epilogue = epilogue_of(tile, step);
  const auto finish_block = [&](const float* sums, int64_t row, const Block& block) {
    float* const to = out + row * layer.padded;
    finish(layer.activation, epilogue, BlockSums{sums, block.column}, block, to, layer.padded);
    combine(tile, step, row, block, to);
  };
  multiply<kPrecision>(
      {&layer, tile.weights, first_word, words, operand, tile.rows}, start, [&] { prefetcher.prefetch_some(); },
      finish_block);
}

inline void run_simple(const Tile& tile, const Step& step, float* out) {
  const LayerLayout& layer = step.layer;
  if (step.kind == StepKind::mix) {
    mix_rows(tile, step, out);
  } else {
    const Columns in = gather(tile, step.inputs, step.columns, tile.gathered);
    for (int64_t r = 0; r < tile.rows; ++r) run_row(step, in.row(r), out + r * layer.padded);
  }
  const Block block{tile.rows, 0, layer.padded};
  if (layer.activation != Activation::identity || step.affine) {
    finish(layer.activation, epilogue_of(tile, step), ResultRows{out, layer.padded}, block, out, layer.padded);
  }
  combine(tile, step, 0, block, out);
}

// Computes all values of the tile's program.
template <Precision kPrecision>
void run_program(const Tile& tile) {
  const Program& program = *tile.plan->program;
  Prefetcher prefetcher(tile);
  for (int64_t s = 0; s < program.step_count; ++s) {
    const Step& step = program.steps[s];
    float* const out = tile.hidden + program.values[s + 1].place * tile.rows;
    if (step.kind == StepKind::linear) {
      run_linear<kPrecision>(tile, step, out, prefetcher);
    } else {
      run_simple(tile, step, out);
    }
  }
}

// The outputs as the tasks' logits r_k.
inline void program_logits(const Tile& tile) {
  int64_t task = 0;
  for (const Segment& segment : tile.plan->program->outputs) {
    const Columns from = columns_of(tile, segment);
    for (int64_t c = 0; c < segment.width; ++c, ++task) {
      for (int64_t r = 0; r < tile.rows; ++r) tile.logits[task * tile.stride + r] = from.row(r)[c];
    }
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
