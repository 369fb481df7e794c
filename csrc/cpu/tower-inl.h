// Towers: the layers of one tile, while it is in cache.
//
//   o_k^l = affine(act(o_k^{l-1} W_k^l + b_k^l)) + o_parent(k)^l
//
// Products: blocks of kBlockRows x (kBlockLanes * 16) sums stay in registers while k runs over the inputs; a
// panel of weights is read once a block of rows, its rows being in L1. Every sum is one chain over k in
// order, starting from the bias (or the user's projection, which is the same chain cut short), whatever the
// block: that is what makes a candidate's score independent of its neighbours, and the request form equal to
// the dense one, to the bit.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// out[r][lanes] = start[r][lanes] + x[r][0..depth) @ panel, one register block.
template <int kRows, int kLanes>
inline void multiply_block(const float* x, int64_t x_stride, int64_t depth, const float* panel, int64_t panel_stride,
                           const float* const* start, int64_t start_offset, float* out, int64_t out_stride) {
  Lanes sum[kRows][kLanes];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kLanes; ++v) sum[r][v] = load(start[r] + start_offset + v * kLane);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Lanes weight[kLanes];
#pragma GCC unroll 8
    for (int v = 0; v < kLanes; ++v) weight[v] = load(panel + v * kLane);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Lanes value = broadcast(x[r * x_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kLanes; ++v) sum[r][v] = multiply_add(value, weight[v], sum[r][v]);
    }
    panel += panel_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kLanes; ++v) store(out + r * out_stride + v * kLane, sum[r][v]);
  }
}

using MultiplyBlock = void (*)(const float*, int64_t, int64_t, const float*, int64_t, const float* const*, int64_t,
                               float*, int64_t);

template <int kRows>
inline MultiplyBlock block_of_rows(int lanes) {
  if constexpr (kBlockLanes == 1) {
    return multiply_block<kRows, 1>;
  } else {
    static constexpr MultiplyBlock kByLanes[] = {multiply_block<kRows, 1>, multiply_block<kRows, 2>,
                                                 multiply_block<kRows, 3>, multiply_block<kRows, 4>};
    return kByLanes[lanes - 1];
  }
}

template <int kRows = kBlockRows>
inline MultiplyBlock block_of(int64_t rows, int lanes) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return block_of<kRows - 1>(rows, lanes);
  }
  return block_of_rows<kRows>(lanes);
}

// What is left to do to a layer's sums.
struct Epilogue {
  const float* slope;  // null unless PReLU
  const float* scale;  // null without an affine
  const float* shift;
  const float* parent;  // null without a feature residual; laid out as the outputs
};

template <Activation kActivation>
inline void finish_rows(const Epilogue& epilogue, const float* sums, int64_t rows, int64_t column, int64_t width,
                        float* out, int64_t stride) {
  for (int64_t at = column; at < column + width; at += kLane) {
    const Lanes slope = epilogue.slope ? load(epilogue.slope + at) : broadcast(0.0f);
    const Lanes scale = epilogue.scale ? load(epilogue.scale + at) : broadcast(1.0f);
    const Lanes shift = epilogue.shift ? load(epilogue.shift + at) : broadcast(0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      Lanes value = activate<kActivation>(load(sums + r * kPanelWidth + at - column), slope);
      if (epilogue.scale) value = multiply_add(value, scale, shift);
      if (epilogue.parent) value = value + load(epilogue.parent + r * stride + at);
      store(out + r * stride + at, value);
    }
  }
}

// out [rows][stride], columns column..column + width, from sums [rows][kPanelWidth]. The parent's outputs may be
// what `out` overwrites.
inline void finish(Activation activation, const Epilogue& epilogue, const float* sums, int64_t rows, int64_t column,
                   int64_t width, float* out, int64_t stride) {
  switch (activation) {
#define RESFLOW_ACTIVATION(name) \
  case Activation::name:         \
    return finish_rows<Activation::name>(epilogue, sums, rows, column, width, out, stride);
#define RESFLOW_HEAD(name)
#define RESFLOW_FUSION(name)
#define RESFLOW_WEIGHTS_PER(name)
#include "contract/enums.def"
#undef RESFLOW_ACTIVATION
#undef RESFLOW_HEAD
#undef RESFLOW_FUSION
#undef RESFLOW_WEIGHTS_PER
    case Activation::count:
      return;
  }
}

// rows of x @ some consecutive inputs of a layer's weights.
struct Product {
  const LayerLayout* layer;
  const float* panels;
  int64_t first_input;
  int64_t depth;
  const float* x;
  int64_t x_stride;
  int64_t rows;
  const float* const* start;  // of row r: start[r * start_step] + start_offset
  int64_t start_step;         // 0: the same for every row; start then holds kBlockRows equal pointers
  int64_t start_offset;
};

// Hands each block's sums [rows][kPanelWidth] to done(sums, first row, rows, first column, columns) while they
// are in L1.
template <class Done>
inline void multiply(const Product& p, Done done) {
  const LayerLayout& layer = *p.layer;
  alignas(64) float sums[kBlockRows * kPanelWidth];
  for (int64_t column = 0; column < layer.padded; column += kPanelWidth) {
    const int64_t width = layer.padded - column < kPanelWidth ? layer.padded - column : kPanelWidth;
    const float* const panel = p.panels + layer.inputs * column + p.first_input * width;
    for (int64_t r = 0; r < p.rows; r += kBlockRows) {
      const int64_t block_rows = p.rows - r < kBlockRows ? p.rows - r : kBlockRows;
      for (int64_t lane = 0; lane < width / kLane; lane += kBlockLanes) {
        const int64_t left = width / kLane - lane;
        const int lanes = static_cast<int>(left < kBlockLanes ? left : kBlockLanes);
        block_of<>(block_rows, lanes)(p.x + r * p.x_stride, p.x_stride, p.depth, panel + lane * kLane, width,
                                      p.start + r * p.start_step, p.start_offset + column + lane * kLane,
                                      sums + lane * kLane, kPanelWidth);
      }
      done(sums, r, block_rows, column, width);
    }
  }
}

// Asks for the next tile's rows, a few cache lines after each block of this one: read when they are needed, their
// latency is 5 % of a tile's time (prerank3 with x in memory).
class Fetcher {
 public:
  explicit Fetcher(const Tile& tile)
      : row_(tile.next_x),
        stride_(tile.x_stride),
        width_(tile.plan->in_features - tile.first_input),
        rows_left_(tile.next_rows) {
    const Plan& plan = *tile.plan;
    int64_t blocks = 0;
    for (int32_t l = 0; l < plan.layers; ++l) blocks += (plan.layer[l].padded + kPanelWidth - 1) / kPanelWidth;
    blocks *= plan.tasks * ((tile.rows + kBlockRows - 1) / kBlockRows);
    lines_a_block_ = (rows_left_ * ((width_ + kLane - 1) / kLane) + blocks - 1) / blocks;
  }

  void fetch_some() {
    for (int64_t line = 0; line < lines_a_block_ && rows_left_ > 0; ++line) {
      __builtin_prefetch(row_ + at_, 0, 2);
      at_ += kLane;
      if (at_ < width_) continue;
      at_ = 0;
      row_ += stride_;
      --rows_left_;
    }
  }

 private:
  const float* row_;
  int64_t stride_;
  int64_t width_;
  int64_t rows_left_;
  int64_t lines_a_block_;
  int64_t at_ = 0;
};

// One task's layers. `hidden` is the task's slot; a parent in the same slot is overwritten as it is read.
inline void run_tower(const Tile& tile, int32_t task, const float* parent_hidden, float* hidden, Fetcher& fetcher) {
  const Plan& plan = *tile.plan;
  const float* const weights = tile.weights + task * plan.task_floats;
  const float* x = tile.x;
  int64_t x_stride = tile.x_stride;
  for (int32_t l = 0; l < plan.layers; ++l) {
    const LayerLayout& layer = plan.layer[l];
    const bool first = l == 0;
    const int64_t first_input = first ? tile.first_input : 0;
    const float* biases[kBlockRows];
    for (int r = 0; r < kBlockRows; ++r) biases[r] = weights + layer.bias;
    const Product product{
        &layer,    weights + layer.panels,      first_input,   layer.inputs - first_input,     x, x_stride,
        tile.rows, first ? tile.start : biases, first ? 1 : 0, first ? task * layer.padded : 0};
    multiply(product, [&](const float* sums, int64_t row, int64_t rows, int64_t column, int64_t width) {
      fetcher.fetch_some();
      const Epilogue epilogue{layer.activation == Activation::prelu ? weights + layer.slope : nullptr,
                              plan.affine ? weights + layer.scale : nullptr,
                              plan.affine ? weights + layer.shift : nullptr,
                              parent_hidden ? parent_hidden + row * layer.padded : nullptr};
      finish(layer.activation, epilogue, sums, rows, column, width, hidden + row * layer.padded, layer.padded);
    });
    x = hidden;
    x_stride = layer.padded;
    hidden += tile.rows * layer.padded;
    if (parent_hidden) parent_hidden += tile.rows * layer.padded;
  }
}

// o^L . w + c of each row, in the same order for every row.
inline void run_head(const Plan& plan, const float* weights, const float* hidden, int64_t rows, float* logits) {
  const LayerLayout& last = plan.layer[plan.layers - 1];
  const float* const head = weights + plan.head_weight;
  const int64_t whole = last.width / kLane * kLane;
  for (int64_t r = 0; r < rows; ++r) {
    const float* const row = hidden + r * last.padded;
    Lanes sum = broadcast(0.0f);
    for (int64_t at = 0; at < whole; at += kLane) sum = multiply_add(load(row + at), load(head + at), sum);
    float parts[kLane];
    store(parts, sum);
    // The padding of the last lanes is not read: an infinite input makes it NaN.
    for (int64_t at = whole; at < last.width; ++at) parts[at - whole] += row[at] * head[at];
    for (int64_t half = kLane / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
    }
    logits[r] = parts[0] + weights[plan.head_bias];
  }
}

// Own logits r_k of all tasks.
inline void run_towers(const Tile& tile) {
  const Plan& plan = *tile.plan;
  Fetcher fetcher(tile);
  const int64_t slot_floats = tile.rows * plan.hidden_floats;
  const int64_t last_offset = slot_floats - tile.rows * plan.layer[plan.layers - 1].padded;
  for (int32_t k = 0; k < plan.tasks; ++k) {
    float* const hidden = tile.hidden + plan.slot[k] * slot_floats;
    const bool residual = plan.feature_residual && plan.parents[k] >= 0;
    const float* const parent = residual ? tile.hidden + plan.slot[plan.parents[k]] * slot_floats : nullptr;
    run_tower(tile, k, parent, hidden, fetcher);
    run_head(plan, tile.weights + k * plan.task_floats, hidden + last_offset, tile.rows, tile.logits + k * tile.stride);
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
