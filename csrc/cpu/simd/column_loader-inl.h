// Loads columns for instruction sets that have no faster way than single floats. Included at the end of their simd_*.h.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// Loads columns of 16 rows [16][columns].
class ColumnLoader {
 public:
  explicit ColumnLoader(int64_t columns) : columns_(columns) {}
  Lanes load(const float* rows, int64_t column) const {
    float values[16];
    for (int64_t i = 0; i < 16; ++i) values[i] = rows[i * columns_ + column];
    return RESFLOW_TARGET::load(values);
  }

 private:
  int64_t columns_;
};

}  // namespace resflow::cpu::RESFLOW_TARGET
