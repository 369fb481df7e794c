// Loads candidates' input rows as operands of the first layer: copied from memory, or pooled from embedding tables.
#pragma once

#include "core/candidates.h"
#include "cuda/device/math.h"
#include "cuda/device/numbers.h"
#include "cuda/device/records.h"
#include "cuda/towers/row_value.h"
#include "cuda/towers/tower_shape.h"

namespace resflow::cuda {

constexpr int kTowerWarps = kTowerThreads / 32;

// Writes the values of an operand in shared or global memory.
template <bool kShared>
struct OperandWriter {
  uint32_t* words;
  int64_t stride;

  template <class T>
  RESFLOW_DEVICE void put(int row, int64_t at, T value) const {
    T* const to = reinterpret_cast<T*>(words + row * stride) + at;
    if constexpr (kShared) {
      *to = value;
    } else {
      store_global(to, value);
    }
  }
};

// The value rounded to the operand's type.
template <Precision kPrecision>
RESFLOW_DEVICE auto rounded(float value) {
  if constexpr (Numbers<kPrecision>::kPerWord == 2) {
    return static_cast<uint16_t>(Numbers<kPrecision>::word(value, 0.0f));
  } else {
    return Numbers<kPrecision>::word(value);
  }
}

// The rows of the source that a block reads: `count` rows from `first` on become rows 0 to count - 1 of the operand;
// its further rows become zeros.
struct RowRange {
  int64_t first;
  int count;
};

// Copies rows that already have the operand's type, in whole 16-byte pieces. The copy is complete once the ring of
// weights, begun after it, has handed out its first chunk: copies arrive in the order of their groups.
template <Precision kPrecision, int kRows>
RESFLOW_DEVICE void copy_rows(const Rows& rows, const RowRange& range, const FirstLayer& first,
                              const OperandWriter<true>& to) {
  const int lane = thread_index() % 32;
  const int64_t bytes = first.columns * bytes_of(kPrecision), pieces = round_up(first.words, kProductWords) / 4;
  for (int row = thread_index() / 32; row < kRows; row += kTowerWarps) {
    const char* const from = row_at(rows, range.first + row);
    for (int64_t piece = lane; piece < pieces; piece += 32) {
      const int64_t left = row < range.count ? bytes - 16 * piece : 0;
      const int own = left < 0 ? 0 : left < 16 ? static_cast<int>(left) : 16;
      copy_async_16(to.words + row * to.stride + 4 * piece, own > 0 ? from + 16 * piece : rows.data, own);
    }
  }
  copy_async_commit();
}

// Converts any rows, one word at a time.
template <Precision kPrecision, int kRows, bool kShared>
RESFLOW_DEVICE void convert_rows(const Rows& rows, const RowRange& range, const FirstLayer& first,
                                 const OperandWriter<kShared>& to) {
  constexpr int kPerWord = Numbers<kPrecision>::kPerWord;
  const int lane = thread_index() % 32;
  const int64_t words = round_up(first.words, kProductWords);
  for (int row = thread_index() / 32; row < kRows; row += kTowerWarps) {
    const char* const from = row_at(rows, range.first + row);
    const auto value = [&](int64_t column) {
      return row < range.count && column >= 0 && column < first.columns ? value_of(from, rows.element, column) : 0.0f;
    };
    for (int64_t at = lane; at < words; at += 32) {
      const int64_t column = at * kPerWord - first.lead;
      if constexpr (kPerWord == 2) {
        to.put(row, at, Numbers<kPrecision>::word(value(column), value(column + 1)));
      } else {
        to.put(row, at, Numbers<kPrecision>::word(value(column)));
      }
    }
  }
}

// The table rows of a candidate: ids [begin, end).
struct IdRange {
  const int64_t* ids;
  int64_t begin, end;
};

RESFLOW_DEVICE IdRange ids_of(const Feature& feature, int64_t candidate) {
  if (!feature.offsets) return {feature.ids + candidate * feature.stride, 0, 1};
  // Offsets on the device are not checked, so they are clamped to the list.
  const int64_t begin = load_constant(feature.offsets + candidate),
                end = load_constant(feature.offsets + candidate + 1);
  const int64_t first = begin < 0 ? 0 : begin > feature.listed ? feature.listed : begin;
  return {feature.ids, first, end < first ? first : end > feature.listed ? feature.listed : end};
}

// Column `column` of a candidate's feature: its rows pooled in list order; NaN if an id is no row of the table.
RESFLOW_DEVICE float pooled(const Feature& feature, const IdRange& range, int64_t column) {
  float sum = 0.0f, total = 0.0f;
  for (int64_t at = range.begin; at < range.end; ++at) {
    const int64_t id = load_constant(range.ids + at);
    if (id < 0 || id >= feature.rows) return kNan;
    if (id == feature.padding) continue;
    // A rounding for each step, like pooling in plain float32 (nothing is contracted).
    float value = value_of(row_at(feature.table, id), feature.table.element, column);
    if (feature.scales) value = value * load_constant(feature.scales + id);
    const float weight = feature.weights ? load_constant(feature.weights + at) : 1.0f;
    sum += value * weight;
    total += weight;
  }
  if (feature.pooling == Pooling::sum) return sum;
  return total == 0.0f ? 0.0f : sum / total;
}

// Pools all features into concatenated rows. `features.all` is device memory.
template <Precision kPrecision, int kRows, bool kShared>
RESFLOW_DEVICE void pool_rows(const Features& features, const RowRange& range, const FirstLayer& first,
                              const OperandWriter<kShared>& to) {
  const int lane = thread_index() % 32;
  const int64_t values = round_up(first.words, kProductWords) * Numbers<kPrecision>::kPerWord;
  for (int row = thread_index() / 32; row < kRows; row += kTowerWarps) {
    const auto put = [&](int64_t at, float value) { to.put(row, at, rounded<kPrecision>(value)); };
    int64_t at = first.lead;
    for (int64_t i = lane; i < first.lead; i += 32) put(i, 0.0f);
    for (int64_t f = 0; f < features.count && row < range.count; ++f) {
      const Feature feature = load_record(features.all + f);
      const IdRange ids = ids_of(feature, range.first + row);
      for (int64_t column = lane; column < feature.width; column += 32) put(at + column, pooled(feature, ids, column));
      at += feature.width;
    }
    for (int64_t i = at + lane; i < values; i += 32) put(i, 0.0f);
  }
}

// Loads the operand with all threads of the block; it may be read after the ring's first chunk (see copy_rows), if
// there is one.
template <Precision kPrecision, int kRows, bool kShared>
RESFLOW_DEVICE void load_input(const Source& source, const RowRange& range, const FirstLayer& first,
                               const OperandWriter<kShared>& to) {
  if (source.pooled()) return pool_rows<kPrecision, kRows>(source.features, range, first, to);
  if constexpr (kShared) {
    const Rows& rows = source.rows;
    const int64_t places = reinterpret_cast<int64_t>(rows.data) | rows.stride * bytes_of(rows.element);
    if (rows.element == kPrecision && first.lead == 0 && places % 16 == 0) {
      return copy_rows<kPrecision, kRows>(rows, range, first, to);
    }
  }
  convert_rows<kPrecision, kRows>(source.rows, range, first, to);
}

}  // namespace resflow::cuda
