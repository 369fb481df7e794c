// Pools features: concatenates rows of embedding tables in float32, summed where a candidate has a list of ids.
//
//   out[r] = [ T_0[id_0(r)] | sum over i of w_i T_1[ids_1(r)_i] (/ sum over i of w_i) | ... ]
//
// The loop over features is outermost, so that a table's type is chosen outside the inner loops; a tile's rows stay in
// L2 for the product that follows. A list is summed in order, starting from zero, with one addition per row, and a row
// is multiplied by its int8 scale and its weight before it is added, with a rounding each on every machine: sums are
// bitwise those of plain float32 code.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// A row of a feature's table.
template <class Element>
struct TableRow {
  const Element* values;
  int64_t readable;  // elements from the first on
  float scale;
  bool scaled;

  // 16 columns from `column` on. Values past the row's end are arbitrary; nothing outside the table is read.
  Lanes load(int64_t column) const {
    const Lanes lanes = load_values(values + column, readable - column);
    return scaled ? lanes * broadcast(scale) : lanes;
  }
};

template <class Element>
inline TableRow<Element> table_row(const Feature& feature, int64_t id) {
  const int64_t from = id * feature.table.stride;
  return {static_cast<const Element*>(feature.table.data) + from, feature.elements - from,
          feature.scales ? feature.scales[id] : 1.0f, feature.scales != nullptr};
}

template <class Element>
inline void pool_ids(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  const int64_t* id = feature.ids + first * feature.stride;
  for (int64_t r = 0; r < rows; ++r, id += feature.stride, out += out_stride) {
    const TableRow<Element> row = table_row<Element>(feature, *id);
    for (int64_t column = 0; column < feature.width; column += kLane) store(out + column, row.load(column));
  }
}

// Requests the row of the id that is kIdsAhead after place i among all lists: lists are too long to be fetched a tile
// ahead, which would drive out of L1 and L2 what is read before (50 ids of 512 bytes: 0.64x of torch.embedding_bag so).
constexpr int64_t kIdsAhead = 16;

template <class Element>
inline void prefetch_row(const Feature& feature, int64_t i) {
  if (i + kIdsAhead >= feature.listed) return;
  const auto* const row = reinterpret_cast<const char*>(static_cast<const Element*>(feature.table.data) +
                                                        feature.ids[i + kIdsAhead] * feature.table.stride);
  const int64_t bytes = feature.width * static_cast<int64_t>(sizeof(Element));
  for (int64_t byte = 0; byte < bytes; byte += kLineBytes) __builtin_prefetch(row + byte);
}

// A list's ids, from `begin` to `end`.
struct ListRange {
  int64_t begin, end;
};

// Sums kGroups times 16 columns of a list's rows from `column` on, times their weights and without the padding; a plain
// list has neither.
template <class Element, bool kPlain, int kGroups>
inline void sum_columns(const Feature& feature, ListRange list, int64_t column, Lanes (&sums)[kGroups]) {
  for (Lanes& sum : sums) sum = broadcast(0.0f);
  for (int64_t i = list.begin; i < list.end; ++i) {
    if (column == 0) prefetch_row<Element>(feature, i);
    if (!kPlain && feature.ids[i] == feature.padding) continue;
    const TableRow<Element> row = table_row<Element>(feature, feature.ids[i]);
    const bool weighted = !kPlain && feature.weights;
    const Lanes weight = broadcast(weighted ? feature.weights[i] : 1.0f);
    for (int g = 0; g < kGroups; ++g) {
      const Lanes values = row.load(column + g * kLane);
      sums[g] = sums[g] + (weighted ? values * weight : values);
    }
  }
}

// What the sums of a mean are divided by; 0 for an empty list.
inline float total_weight(const Feature& feature, ListRange list) {
  float total = 0.0f;
  for (int64_t i = list.begin; i < list.end; ++i) {
    if (feature.ids[i] != feature.padding) total += feature.weights ? feature.weights[i] : 1.0f;
  }
  return total;
}

// Pools columns of a list from `column` on, as many groups of 16 at a time as there are, up to kGroups; returns the
// first column that is left.
template <class Element, bool kPlain, int kGroups>
inline int64_t pool_columns(const Feature& feature, ListRange list, const float* total, int64_t column, float* out) {
  for (; column + (kGroups - 1) * kLane < feature.width; column += kGroups * kLane) {
    Lanes sums[kGroups];
    sum_columns<Element, kPlain>(feature, list, column, sums);
    for (int g = 0; g < kGroups; ++g) {
      const Lanes mean = total && *total != 0.0f ? sums[g] / broadcast(*total) : broadcast(0.0f);
      store(out + column + g * kLane, total ? mean : sums[g]);
    }
  }
  if constexpr (kGroups > 1) {
    return pool_columns<Element, kPlain, kGroups / 2>(feature, list, total, column, out);
  } else {
    return column;
  }
}

template <class Element, bool kPlain>
inline void pool_lists(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  const int64_t* const offsets = feature.offsets + first;
  for (int64_t r = 0; r < rows; ++r, out += out_stride) {
    const ListRange list{offsets[r], offsets[r + 1]};
    const float total = feature.pooling == Pooling::mean ? total_weight(feature, list) : 0.0f;
    pool_columns<Element, kPlain, 4>(feature, list, feature.pooling == Pooling::mean ? &total : nullptr, 0, out);
  }
}

template <class Element>
inline void pool_feature(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  if (!feature.offsets) {
    pool_ids<Element>(feature, first, rows, out, out_stride);
  } else if (feature.padding < 0 && !feature.weights) {
    pool_lists<Element, true>(feature, first, rows, out, out_stride);
  } else {
    pool_lists<Element, false>(feature, first, rows, out, out_stride);
  }
}

void pool(const Features& features, int64_t first, int64_t rows, float* out) {
  const int64_t stride = pooled_stride(features.width);
  for (const Feature* feature = features.all; feature < features.all + features.count; ++feature) {
    with_precision<precision_flag::in_tables>(feature->table.element, [&](auto element) {
      pool_feature<Stored<element.value>>(*feature, first, rows, out, stride);
    });
    out += feature->width;
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
