// Computes the tower layers of one tile while it is in cache.
//
//   o_k^l = affine(act(o_k^{l-1} W_k^l + b_k^l)) + o_parent(k)^l
//
// Products: blocks of kBlockRows x (kBlockLanes * 16) sums stay in registers while k runs over the inputs; a panel of
// weights is read once per block of rows, whose inputs are in L1. Every sum is one chain over k in order, starting from
// the bias (or the user's projection, which is the first part of the same chain), whatever the block. A candidate's
// score therefore does not depend on its neighbours, and the request form is bitwise equal to the dense one.
#pragma once

#include "core/program.h"

namespace resflow::cpu::RESFLOW_TARGET {

// One register block: out[r][lanes] = start[r][lanes] + row r of x times a panel.
template <Precision kPrecision, int kRows, int kLanes>
inline void multiply_block(const Operand& x, int64_t words, const float* panel, int64_t panel_stride,
                           const float* column_scale, const float* const* start, float* out) {
  using P = Product<kPrecision>;
  typename P::Sum sum[kRows][kLanes];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kLanes; ++v) sum[r][v] = P::begin(x.row(r), load(start[r] + v * kLane));
  }
  for (int64_t k = 0; k < words; ++k) {
#pragma GCC unroll 2
    for (int part = 0; part < P::kParts; ++part) {
      decltype(P::weights(panel, 0)) weight[kLanes];
#pragma GCC unroll 8
      for (int v = 0; v < kLanes; ++v) weight[v] = P::weights(panel + v * kLane, part);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto value = P::value(x.words[r * x.stride + k], part);
#pragma GCC unroll 8
        for (int v = 0; v < kLanes; ++v) sum[r][v] = P::add(value, weight[v], sum[r][v]);
      }
    }
    panel += panel_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kLanes; ++v) {
      const int64_t offset = v * kLane;
      store(out + r * kPanelWidth + offset, P::end(sum[r][v], x.row(r), column_scale + offset, start[r] + offset));
    }
  }
}

using MultiplyBlock = void (*)(const Operand&, int64_t, const float*, int64_t, const float*, const float* const*,
                               float*);

template <Precision kPrecision, int kRows>
inline MultiplyBlock block_of_rows(int lanes) {
  if constexpr (kInPairs<kPrecision>) {
    return multiply_pairs<kPrecision, kRows>;
  } else if constexpr (kBlockLanes == 1) {
    return multiply_block<kPrecision, kRows, 1>;
  } else {
    static constexpr MultiplyBlock kByLanes[] = {
        multiply_block<kPrecision, kRows, 1>, multiply_block<kPrecision, kRows, 2>,
        multiply_block<kPrecision, kRows, 3>, multiply_block<kPrecision, kRows, 4>};
    return kByLanes[lanes - 1];
  }
}

template <Precision kPrecision, int kRows = kBlockRows>
inline MultiplyBlock block_of(int64_t rows, int lanes) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return block_of<kPrecision, kRows - 1>(rows, lanes);
  }
  return block_of_rows<kPrecision, kRows>(lanes);
}

// Parameters of the steps that follow a layer's sums.
struct Epilogue {
  const float* slope;  // null unless PReLU
  const float* scale;  // null without an affine
  const float* shift;
  const float* parent;  // null without a feature residual; same layout as the outputs
};

// A block's sums, [rows][kPanelWidth].
struct BlockSums {
  const float* sums;
  int64_t first_column;

  Lanes operator()(int64_t row, int64_t column) const {
    return in_register(load(sums + row * kPanelWidth + column - first_column));
  }
};

// The catalog form's first layers: a block's sums are looked up. The layer's columns begin at `offset` of a table's row
// and at `start_offset` of a user's sums.
template <class Table>
struct TableSums {
  const void* const* rows;
  const float* scales;
  const float* const* start;
  int64_t offset;
  int64_t start_offset;

  Lanes operator()(int64_t row, int64_t column) const {
    const Lanes product = load_values(static_cast<const Table*>(rows[row]) + offset + column);
    const Lanes begin = load(start[row] + start_offset + column);
    if constexpr (sizeof(Table) > 1) return in_register(product + begin);
    return in_register(multiply_add(product, broadcast(scales[row]), begin));
  }
};

// A block's number of rows and its finished columns.
struct Block {
  int64_t rows;
  int64_t column;
  int64_t width;
};

// Computes the block's columns of out [rows][stride] from its sums. `out` may overwrite the parent's outputs.
template <Activation kActivation, bool kAffine, bool kResidual, class Sums>
inline void finish_rows(const Epilogue& epilogue, const Sums& sums, const Block& block, float* out, int64_t stride) {
  // Copied, because a store of lanes might alias what a reference refers to, and each row would reload it.
  const auto [slopes, scales, shifts, parent] = epilogue;
  const Sums sums_at = sums;
  const int64_t rows = block.rows, end = block.column + block.width;
  for (int64_t column = block.column; column < end; column += kLane) {
    const Lanes slope = kActivation == Activation::prelu ? load(slopes + column) : broadcast(0.0f);
    const Lanes scale = kAffine ? load(scales + column) : broadcast(1.0f);
    const Lanes shift = kAffine ? load(shifts + column) : broadcast(0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      Lanes value = activate<kActivation>(sums_at(r, column), slope);
      if constexpr (kAffine) value = multiply_add(value, scale, shift);
      if constexpr (kResidual) value = value + load(parent + r * stride + column);
      store(out + r * stride + column, value);
    }
  }
}

template <Activation kActivation, class Sums>
inline void finish_activation(const Epilogue& epilogue, const Sums& sums, const Block& block, float* out,
                              int64_t stride) {
  using Finish = void (*)(const Epilogue&, const Sums&, const Block&, float*, int64_t);
  static constexpr Finish kBySwitches[2][2] = {
      {finish_rows<kActivation, false, false, Sums>, finish_rows<kActivation, false, true, Sums>},
      {finish_rows<kActivation, true, false, Sums>, finish_rows<kActivation, true, true, Sums>}};
  kBySwitches[epilogue.scale != nullptr][epilogue.parent != nullptr](epilogue, sums, block, out, stride);
}

template <class Sums>
inline void finish(Activation activation, const Epilogue& epilogue, const Sums& sums, const Block& block, float* out,
                   int64_t stride) {
  with_activation(activation,
                  [&](auto formula) { finish_activation<formula.value>(epilogue, sums, block, out, stride); });
}

// The product of rows and consecutive words of a layer's weights.
struct MatrixProduct {
  const LayerLayout* layer;
  const float* task;  // the task's packed block
  int64_t first_word;
  int64_t words;
  Operand x;
  int64_t rows;
};

// Initial values of sums: one row of floats per row, one row shared by all, or zeros.
struct AccumInit {
  const float* same;
  const float* const* each = nullptr;
  int64_t offset = 0;  // into each row
  int64_t column_step = 1;

  static AccumInit zeros(const float* panel_of_zeros) { return {panel_of_zeros, nullptr, 0, 0}; }
  // Points the rows of a block at their values from `column` on. One branch per block: GCC 12 leaves it in the loop
  // over rows where the function has grown, which took 2 % of prerank3's time.
  void fill(int64_t row, int64_t rows, int64_t column, const float** starts) const {
    const int64_t at = column * column_step;
    if (each) {
      for (int64_t i = 0; i < rows; ++i) starts[i] = each[row + i] + offset + at;
    } else {
      for (int64_t i = 0; i < rows; ++i) starts[i] = same + at;
    }
  }
};

// Rows per call of the epilogue: 12 KB of sums in L1. With one call per block, a fifth of the epilogue was calls.
constexpr int64_t kSumsRows = 48;
static_assert(kSumsRows % kBlockRows == 0);

// Passes a panel's sums [rows][kPanelWidth] to done(sums, first row, block) while they are in L1; calls after_block()
// after each register block.
template <Precision kPrecision, class AfterBlock, class Done>
inline void multiply(const MatrixProduct& p, const AccumInit& start, AfterBlock after_block, Done done) {
  const LayerLayout& layer = *p.layer;
  alignas(64) float sums[kSumsRows * kPanelWidth];
  for (int64_t column = 0; column < layer.padded; column += kPanelWidth) {
    const int64_t width = layer.padded - column < kPanelWidth ? layer.padded - column : kPanelWidth;
    const float* const panel = p.task + layer.panels + layer.words * column + p.first_word * width;
    for (int64_t r = 0, group = 0; r < p.rows; r += kBlockRows) {
      const int64_t block_rows = p.rows - r < kBlockRows ? p.rows - r : kBlockRows;
      float* const block_sums = sums + (r - group) * kPanelWidth;
      for (int64_t lane = 0; lane < width / kLane; lane += kBlockLanes) {
        const int64_t left = width / kLane - lane;
        const int lanes = static_cast<int>(left < kBlockLanes ? left : kBlockLanes);
        const int64_t first = column + lane * kLane;
        const float* starts[kBlockRows];
        start.fill(r, block_rows, first, starts);
        block_of<kPrecision>(block_rows, lanes)(p.x.row(r), p.words, panel + lane * kLane, width,
                                                p.task + layer.column_scale + first, starts, block_sums + lane * kLane);
      }
      after_block();
      const int64_t end = r + block_rows;
      if (end - group == kSumsRows || end == p.rows) {
        done(sums, group, Block{end - group, column, width});
        group = end;
      }
    }
  }
}

// The first layer's operand: rows of consecutive inputs, and their words in the weights.
struct FirstLayerRows {
  int64_t first_word;
  int64_t words;
  Operand operand;
};

template <Precision kPrecision>
inline FirstLayerRows first_layer_rows(const Rows& x, int64_t rows, int64_t first_input, int64_t columns,
                                       float* scratch) {
  constexpr int64_t kPerWord = inputs_per_word(kPrecision);
  const int64_t first_word = first_input / kPerWord, lead = first_input % kPerWord;
  const int64_t words = columns == 0 ? 0 : (lead + columns + kPerWord - 1) / kPerWord;
  const OperandBuffer buffer(scratch, rows, words);
  if (x.element == Precision::bfloat16) {
    const auto* const values = static_cast<const uint16_t*>(x.data);
    return {first_word, words, make_operand<kPrecision>(values, x.stride, rows, columns, lead, words, buffer)};
  }
  const auto* const values = static_cast<const float*>(x.data);
  if constexpr (kPrecision == Precision::float32) return {first_word, words, {values, x.stride, nullptr, nullptr}};
  return {first_word, words, make_operand<kPrecision>(values, x.stride, rows, columns, lead, words, buffer)};
}

// Prefetches the memory that the next tile reads, a few cache lines after each block of this one: without it, the
// latency is 5 % of a tile's time (prerank3 with x in memory), and most of the time in the catalog form.
class Prefetcher {
 public:
  explicit Prefetcher(const Tile& tile) : spans_(tile.next) {
    const Plan& plan = *tile.plan;
    int64_t panels = 0;
    for (int32_t l = 0; l < plan.layers; ++l) panels += (plan.layer[l].padded + kPanelWidth - 1) / kPanelWidth;
    panels *= plan.tasks;
    if (plan.program) panels = plan.program->panels > 0 ? plan.program->panels : 1;
    const int64_t blocks = panels * ((tile.rows + kBlockRows - 1) / kBlockRows);
    lines_per_block_ = (spans_.lines + blocks - 1) / blocks;
  }

  void prefetch_some() {
    for (int64_t left = lines_per_block_; left > 0 && span_ < spans_.count; ++span_) {
      const Span span = spans_.all[span_];
      const int64_t lines = (span.bytes - at_ + kLineBytes - 1) / kLineBytes;
      const int64_t some = lines < left ? lines : left;
      for (int64_t line = 0; line < some; ++line) __builtin_prefetch(span.begin + at_ + line * kLineBytes, 0, 2);
      left -= some;
      at_ += some * kLineBytes;
      if (some < lines) return;
      at_ = 0;
    }
  }

 private:
  const Spans spans_;
  int64_t lines_per_block_;
  int64_t span_ = 0;
  int64_t at_ = 0;  // prefetched bytes of the span
};

// A layer's outputs as the next layer's operand.
template <Precision kPrecision>
inline Operand hidden_operand(const Tile& tile, int32_t layer, const float* hidden) {
  const LayerLayout &current = tile.plan->layer[layer], &next = tile.plan->layer[layer + 1];
  if constexpr (kPrecision == Precision::float32) return {hidden, current.padded, nullptr, nullptr};
  const OperandBuffer buffer(tile.hidden_operand, tile.rows, next.words);
  return make_operand<kPrecision>(hidden, current.padded, tile.rows, current.width, 0, next.words, buffer);
}

inline Epilogue epilogue_of(const Plan& plan, const LayerLayout& layer, const float* weights, const float* parent) {
  return {layer.activation == Activation::prelu ? weights + layer.slope : nullptr,
          plan.affine ? weights + layer.scale : nullptr, plan.affine ? weights + layer.shift : nullptr, parent};
}

// The first layer of the catalog form.
template <class Table>
inline void look_up_layer(const Tile& tile, int32_t task, const Epilogue& epilogue, float* hidden,
                          Prefetcher& prefetcher) {
  const LayerLayout& layer = tile.plan->layer[0];
  for (int64_t r = 0; r < tile.rows; r += kBlockRows) {
    const Block block{tile.rows - r < kBlockRows ? tile.rows - r : kBlockRows, 0, layer.padded};
    const int64_t offset = task * layer.padded;
    const TableSums<Table> sums{tile.table_rows + r, tile.table_scales + r, tile.accum_init + r, offset, offset};
    const float* const parent = epilogue.parent ? epilogue.parent + r * layer.padded : nullptr;
    finish(layer.activation, {epilogue.slope, epilogue.scale, epilogue.shift, parent}, sums, block,
           hidden + r * layer.padded, layer.padded);
    for (int64_t panel = 0; panel < layer.padded; panel += kPanelWidth) prefetcher.prefetch_some();
  }
}

inline void look_up(const Tile& tile, int32_t task, const Epilogue& epilogue, float* hidden, Prefetcher& prefetcher) {
  with_precision<precision_flag::in_tables>(tile.table_element, [&](auto element) {
    look_up_layer<Stored<element.value>>(tile, task, epilogue, hidden, prefetcher);
  });
}

// Computes one task's layers. `hidden` is the task's slot; a parent in the same slot is overwritten as it is read.
template <Precision kPrecision>
inline void run_tower(const Tile& tile, const FirstLayerRows& x, int32_t task, const float* parent_hidden,
                      float* hidden, Prefetcher& prefetcher) {
  const Plan& plan = *tile.plan;
  const float* const weights = tile.weights + task * plan.task_floats;
  Operand operand = x.operand;
  for (int32_t l = 0; l < plan.layers; ++l) {
    const LayerLayout& layer = plan.layer[l];
    const Epilogue epilogue = epilogue_of(plan, layer, weights, parent_hidden);
    const auto prefetch = [&] { prefetcher.prefetch_some(); };
    const auto finish_block = [&](const float* sums, int64_t row, const Block& block) {
      const float* const parent = parent_hidden ? parent_hidden + row * layer.padded : nullptr;
      finish(layer.activation, {epilogue.slope, epilogue.scale, epilogue.shift, parent}, BlockSums{sums, block.column},
             block, hidden + row * layer.padded, layer.padded);
    };
    if (l > 0) {
      multiply<kPrecision>({&layer, weights, 0, layer.words, operand, tile.rows}, AccumInit{weights + layer.bias},
                           prefetch, finish_block);
    } else if (tile.table_rows) {
      look_up(tile, task, epilogue, hidden, prefetcher);
    } else {
      multiply<kPrecision>({&layer, weights, x.first_word, x.words, operand, tile.rows},
                           AccumInit{nullptr, tile.accum_init, task * layer.padded}, prefetch, finish_block);
    }
    if (l + 1 < plan.layers) operand = hidden_operand<kPrecision>(tile, l, hidden);
    hidden += tile.rows * layer.padded;
    if (parent_hidden) parent_hidden += tile.rows * layer.padded;
  }
}

// The task logits o^L . w + c of each row, summed in the same order for every row.
inline void run_head(const Plan& plan, const float* weights, const float* hidden, int64_t rows, float* logits) {
  const LayerLayout& last = plan.layer[plan.layers - 1];
  const float* const head = weights + plan.head_weight;
  const int64_t whole = last.width / kLane * kLane;
  for (int64_t r = 0; r < rows; ++r) {
    const float* const row = hidden + r * last.padded;
    Lanes sum = broadcast(0.0f);
    for (int64_t i = 0; i < whole; i += kLane) sum = multiply_add(load(row + i), load(head + i), sum);
    // The row's padding is not read: it is NaN for an infinite input.
    if (whole < last.width) {
      sum = multiply_add(load_values(row + whole, last.width - whole), load(head + whole), sum);
    }
    logits[r] = horizontal_sum(sum) + weights[plan.head_bias];
  }
}

// Computes the logits r_k, before residuals, of all tasks by their towers.
template <Precision kPrecision>
inline void run_towers(const Tile& tile) {
  const Plan& plan = *tile.plan;
  const int64_t columns = tile.table_rows ? 0 : plan.in_features - tile.first_input;
  const FirstLayerRows x = first_layer_rows<kPrecision>(tile.x, tile.rows, tile.first_input, columns, tile.x_operand);
  Prefetcher prefetcher(tile);
  const int64_t slot_floats = tile.rows * plan.hidden_floats;
  const int64_t last_offset = slot_floats - tile.rows * plan.layer[plan.layers - 1].padded;
  for (int32_t k = 0; k < plan.tasks; ++k) {
    float* const hidden = tile.hidden + plan.slot[k] * slot_floats;
    const bool residual = plan.feature_residual && plan.parents[k] >= 0;
    const float* const parent = residual ? tile.hidden + plan.slot[plan.parents[k]] * slot_floats : nullptr;
    run_tower<kPrecision>(tile, x, k, parent, hidden, prefetcher);
    run_head(plan, tile.weights + k * plan.task_floats, hidden + last_offset, tile.rows, tile.logits + k * tile.stride);
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
