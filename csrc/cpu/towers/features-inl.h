// Features: rows of embedding tables, summed where a candidate has a list of them, side by side in float32.
//
//   out[r] = [ T_0[id_0(r)] | sum over i of T_1[ids_1(r)_i] | ... ]
//
// Feature by feature, so that what a feature's table holds is chosen outside its loop; a tile's rows stay in L2 for
// the product that follows. A list is summed from zero in its order, one addition a row, and an int8 row is multiplied
// by its scale before it is added, as two roundings on every machine: so the sums have the bits of plain float32 code.
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

  // 16 columns of a row from `at` on. Past the row's end there may be anything, but nothing outside the table is read.
  Lanes load_row(int64_t id, int64_t at) const {
    const int64_t from = id * stride_ + at;
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
    for (int64_t at = 0; at < feature.width; at += kLane) store(out + at, table.load_row(*id, at));
  }
}

template <class Element>
inline void pool_lists(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  const Table<Element> table(feature);
  const int64_t* const offsets = feature.offsets + first;
  for (int64_t r = 0; r < rows; ++r, out += out_stride) {
    for (int64_t at = 0; at < feature.width; at += kLane) {
      Lanes sum = broadcast(0.0f);
      for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) sum = sum + table.load_row(feature.ids[i], at);
      store(out + at, sum);
    }
  }
}

template <class Element>
inline void pool_feature(const Feature& feature, int64_t first, int64_t rows, float* out, int64_t out_stride) {
  if (feature.offsets) {
    pool_lists<Element>(feature, first, rows, out, out_stride);
  } else {
    pool_ids<Element>(feature, first, rows, out, out_stride);
  }
}

void pool(const Features& features, int64_t first, int64_t rows, float* out) {
  const int64_t stride = pooled_stride(features.width);
  for (const Feature* feature = features.all; feature < features.all + features.count; ++feature) {
    switch (feature->table.element) {
      case Precision::bfloat16:
        pool_feature<uint16_t>(*feature, first, rows, out, stride);
        break;
      case Precision::int8:
        pool_feature<int8_t>(*feature, first, rows, out, stride);
        break;
      case Precision::float32:
        pool_feature<float>(*feature, first, rows, out, stride);
        break;
      case Precision::float16:  // no tables
      case Precision::tensorfloat32:
      case Precision::count:
        break;
    }
    out += feature->width;
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
