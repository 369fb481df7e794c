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

// The rows of one feature's table.
template <class Element>
class Table {
 public:
  explicit Table(const Feature& feature)
      : first_(static_cast<const Element*>(feature.table.data)),
        stride_(feature.table.stride),
        elements_(feature.elements),
        scales_(feature.scales) {}

  // 16 columns of a row from `column` on. Values past the row's end are arbitrary; nothing outside the table is read.
  Lanes load_row(int64_t id, int64_t column) const {
    const int64_t from = id * stride_ + column;
    const Lanes values = load_values(first_ + from, elements_ - from);
    return scales_ ? values * broadcast(scales_[id]) : values;
  }

 private:
  const Element* first_;
  int64_t stride_;
  int64_t elements_;
  const float* scales_;
};

template <class Element>
inline void pool_ids(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  const Table<Element> table(feature);
  const int64_t* id = feature.ids + first * feature.stride;
  for (int64_t r = 0; r < rows; ++r, id += feature.stride, out += out_stride) {
    for (int64_t column = 0; column < feature.width; column += kLane) store(out + column, table.load_row(*id, column));
  }
}

template <class Element>
inline void pool_lists(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  const Table<Element> table(feature);
  const int64_t* const offsets = feature.offsets + first;
  for (int64_t r = 0; r < rows; ++r, out += out_stride) {
    for (int64_t column = 0; column < feature.width; column += kLane) {
      Lanes sum = broadcast(0.0f);
      for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) sum = sum + table.load_row(feature.ids[i], column);
      store(out + column, sum);
    }
  }
}

// Lists with weights or a padding id, or of which the mean is wanted.
template <class Element>
inline void pool_weighted_lists(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  const Table<Element> table(feature);
  const int64_t* const offsets = feature.offsets + first;
  const auto counts = [&](int64_t i) { return feature.ids[i] != feature.padding; };
  for (int64_t r = 0; r < rows; ++r, out += out_stride) {
    float total = 0.0f;
    for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) {
      if (counts(i)) total += feature.weights ? feature.weights[i] : 1.0f;
    }
    for (int64_t column = 0; column < feature.width; column += kLane) {
      Lanes sum = broadcast(0.0f);
      for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) {
        if (!counts(i)) continue;
        const Lanes row = table.load_row(feature.ids[i], column);
        sum = sum + (feature.weights ? row * broadcast(feature.weights[i]) : row);
      }
      if (feature.pooling == Pooling::mean) sum = total == 0.0f ? broadcast(0.0f) : sum / broadcast(total);
      store(out + column, sum);
    }
  }
}

template <class Element>
inline void pool_feature(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  if (feature.offsets && (feature.pooling != Pooling::sum || feature.padding >= 0 || feature.weights)) {
    pool_weighted_lists<Element>(feature, first, rows, out, out_stride);
  } else if (feature.offsets) {
    pool_lists<Element>(feature, first, rows, out, out_stride);
  } else {
    pool_ids<Element>(feature, first, rows, out, out_stride);
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
