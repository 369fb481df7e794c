#include "cpu/towers/source.h"

namespace resflow::cpu {
namespace {

// Tables up to this size are assumed to be in cache: prefetching their rows took 2 % of prerank3's time (18 tables, 8
// of them of 128 KB).
constexpr int64_t kCachedTableBytes = 256 * 1024;

void add_table_row(const Feature& feature, int64_t id, SpanList& spans) {
  spans.add(feature.table.from(id).data, feature.width * bytes_of(feature.table.element));
  if (feature.scales) spans.add(feature.scales + id, sizeof(float));
}

// Rows of lists are fetched while they are pooled (features-inl.h).
void add_feature(const Feature& feature, int64_t first, int64_t rows, SpanList& spans) {
  if (feature.offsets || feature.elements * bytes_of(feature.table.element) <= kCachedTableBytes) return;
  for (int64_t r = first; r < first + rows; ++r) add_table_row(feature, feature.ids[r * feature.stride], spans);
}

}  // namespace

void add_spans(const Source& source, int64_t first, int64_t rows, int64_t columns, SpanList& spans) {
  if (rows == 0) return;
  for (int64_t f = 0; f < source.features.count; ++f) add_feature(source.features.all[f], first, rows, spans);
  if (source.pooled()) return;
  for (int64_t r = first; r < first + rows; ++r) {
    spans.add(source.rows.from(r).data, columns * bytes_of(source.rows.element));
  }
}

}  // namespace resflow::cpu
