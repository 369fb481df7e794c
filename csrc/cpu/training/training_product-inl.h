// Matrix products for training, in register blocks of kBlockRows x (kBlockLanes * 16) sums like those of scoring
// (tower-inl.h). a is read in place, b is packed into panels: a step of the depth reads one value of a for each row of
// the block, along the rows (forward, input gradients) or along a column (weight gradients).
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// Addresses a block's values (row, depth): consecutive depths form a run, followed by the next run.
struct Walk {
  int64_t row;    // step from a row of the block to the next
  int64_t depth;  // step from a depth to the next
  int64_t run;    // depths per run
  int64_t jump;   // step from a run's first value to the next run's
};

template <int kRows, int kLanes>
inline void training_block(const float* a, const Walk& walk, int64_t depth, const float* panel, int64_t panel_stride,
                           const float* start, float* out) {
  Lanes sum[kRows][kLanes];
#pragma GCC unroll 8
  for (int v = 0; v < kLanes; ++v) {
    const Lanes first = start ? load(start + v * kLane) : broadcast(0.0f);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r][v] = first;
  }
  const int64_t row = walk.row, step = walk.depth;
  for (int64_t done = 0; done < depth; done += walk.run, a += walk.jump) {
    const int64_t count = depth - done < walk.run ? depth - done : walk.run;
    const float* value = a;
    for (int64_t k = 0; k < count; ++k) {
      Lanes weight[kLanes];
#pragma GCC unroll 8
      for (int v = 0; v < kLanes; ++v) weight[v] = load(panel + v * kLane);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Lanes a_value = broadcast(value[r * row]);
#pragma GCC unroll 8
        for (int v = 0; v < kLanes; ++v) sum[r][v] = multiply_add(a_value, weight[v], sum[r][v]);
      }
      value += step;
      panel += panel_stride;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kLanes; ++v) store(out + r * kPanelWidth + v * kLane, sum[r][v]);
  }
}

using TrainingBlock = void (*)(const float*, const Walk&, int64_t, const float*, int64_t, const float*, float*);

template <int kRows>
inline TrainingBlock training_block_of_rows(int lanes) {
  if constexpr (kBlockLanes == 1) {
    return training_block<kRows, 1>;
  } else {
    static constexpr TrainingBlock kByLanes[] = {training_block<kRows, 1>, training_block<kRows, 2>,
                                                 training_block<kRows, 3>, training_block<kRows, 4>};
    return kByLanes[lanes - 1];
  }
}

template <int kRows = kBlockRows>
inline TrainingBlock training_block_of(int64_t rows, int lanes) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return training_block_of<kRows - 1>(rows, lanes);
  }
  return training_block_of_rows<kRows>(lanes);
}

// Stores sums [rows][kPanelWidth] to the product's output, from `column` on.
inline void keep_sums(const TrainingProduct& p, const float* sums, int64_t row, int64_t rows, int64_t column,
                      int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += kLane) {
      float* const out = p.out.data + (row + r) * p.out.row + (column + c) / kLane * p.out.block;
      const float* const from = sums + r * kPanelWidth + c;
      if (columns - c >= kLane) {
        const Lanes value = load(from);
        store(out, p.add ? load(out) + value : value);
      } else {
        for (int64_t i = 0; i < columns - c; ++i) out[i] = p.add ? out[i] + from[i] : from[i];
      }
    }
  }
}

// Number of rows of the block that begins at `row`. Transposed rows are columns in memory, in grid blocks of kLane
// columns, which are divided evenly: 6 + 5 + 5.
inline int64_t rows_of_block(const TrainingProduct& p, int64_t row) {
  const int64_t left = p.rows - row;
  if (!p.transposed) return left < kBlockRows ? left : kBlockRows;
  const int64_t here = kLane - row % kLane, blocks = (here + kBlockRows - 1) / kBlockRows;
  const int64_t rows = (here + blocks - 1) / blocks;
  return left < rows ? left : rows;
}

inline void training_product(const TrainingProduct& p) {
  const ConstGrid& a = p.a;
  const bool row_major = a.block == kLane;
  const Walk walk = p.transposed ? Walk{1, a.row, p.depth, 0} : Walk{a.row, 1, row_major ? p.depth : kLane, a.block};
  alignas(64) float sums[kBlockRows * kPanelWidth];
  const int64_t padded = pad_to_lane(p.columns);
  for (int64_t column = 0; column < padded; column += kPanelWidth) {
    const int64_t width = padded - column < kPanelWidth ? padded - column : kPanelWidth;
    const float* const panel = p.panels + column * p.depth;
    const int64_t columns = p.columns - column < width ? p.columns - column : width;
    for (int64_t row = 0, rows = 0; row < p.rows; row += rows) {
      rows = rows_of_block(p, row);
      const float* const from = p.transposed ? a.data + row / kLane * a.block + row % kLane : a.data + row * a.row;
      for (int64_t lane = 0; lane < width / kLane; lane += kBlockLanes) {
        const int64_t left = width / kLane - lane;
        const int lanes = static_cast<int>(left < kBlockLanes ? left : kBlockLanes);
        training_block_of(rows, lanes)(from, walk, p.depth, panel + lane * kLane, width,
                                       p.start ? p.start + column + lane * kLane : nullptr, sums + lane * kLane);
      }
      keep_sums(p, sums, row, rows, column, columns);
    }
  }
}

inline void pack_panel(const ConstGrid& rows, int64_t depth, int64_t columns, int64_t width, float* panel) {
  // Rows of x come from memory, a few cache lines of each: too few for hardware prefetching.
  constexpr int64_t kAhead = 16;
  for (int64_t k = 0; k < depth; ++k, panel += width) {
    const float* const row = rows.data + k * rows.row;
    for (int64_t c = 0; c < width; c += kLane) {
      const float* const from = row + c / kLane * rows.block;
      const int64_t here = columns - c;
      __builtin_prefetch(from + kAhead * rows.row);
      if (here >= kLane) {
        store(panel + c, load(from));
      } else {
        for (int64_t i = 0; i < kLane; ++i) panel[c + i] = i < here ? from[i] : 0.0f;
      }
    }
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
