// Locates a tile's input rows, and lists the memory to prefetch for them.
#pragma once

#include <vector>

#include "cpu/simd/kernels.h"

namespace resflow::cpu {

// Floats of scratch that rows_of pools into.
inline int64_t pooled_floats(const Source& source, int64_t rows) {
  return source.pooled() ? rows * pooled_stride(source.features.width) : 0;
}

// The source's rows from `first` on; features are pooled into `pooled`.
inline Rows rows_of(const Kernels& kernels, const Source& source, int64_t first, int64_t rows, float* pooled) {
  if (!source.pooled()) return source.rows.data ? source.rows.from(first) : source.rows;
  kernels.pool(source.features, first, rows, pooled);
  return {pooled, Precision::float32, pooled_stride(source.features.width)};
}

// A list of memory spans; a thread reuses it from tile to tile.
class SpanList {
 public:
  void clear() {
    spans_.clear();
    lines_ = 0;
  }
  void add(const void* begin, int64_t bytes) {
    spans_.push_back({static_cast<const char*>(begin), bytes});
    lines_ += (bytes + kLineBytes - 1) / kLineBytes;
  }
  Spans view() const { return {spans_.data(), static_cast<int64_t>(spans_.size()), lines_}; }

 private:
  std::vector<Span> spans_;
  int64_t lines_ = 0;
};

// Adds the memory that rows_of will read for `columns` columns of `rows` rows from `first` on.
void add_spans(const Source& source, int64_t first, int64_t rows, int64_t columns, SpanList& spans);

}  // namespace resflow::cpu
