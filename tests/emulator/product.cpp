#include "emulator/product.h"

namespace resflow::cuda::emulator {

namespace {

struct Fragments {
  float* sums;
  const uint32_t *a, *b;
};

template <class Words>
void multiply_warp(void* const* lanes) {
  constexpr int kDepth = 8 * Words::kPerWord;
  float a[16][kDepth], b[kDepth][8], sums[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& mine = *static_cast<const Fragments*>(lanes[lane]);
    const int row = lane / 4, word = lane % 4;
    for (int i = 0; i < 4; ++i) {
      Words::unpack(mine.a[i], &a[row + 8 * (i % 2)][(word + 4 * (i / 2)) * Words::kPerWord]);
      sums[row + 8 * (i / 2)][2 * word + i % 2] = mine.sums[i];
    }
    for (int i = 0; i < 2; ++i) {
      float values[Words::kPerWord];
      Words::unpack(mine.b[i], values);
      for (int v = 0; v < Words::kPerWord; ++v) b[(word + 4 * i) * Words::kPerWord + v][lane / 4] = values[v];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int depth = 0; depth < kDepth; ++depth) {
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][depth] * b[depth][column];
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    float* const mine = static_cast<const Fragments*>(lanes[lane])->sums;
    for (int i = 0; i < 4; ++i) mine[i] = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  }
}

}  // namespace

template <class Words>
void multiply(float* sums, const uint32_t* a, const uint32_t* b, const Site& site) {
  Block& self = block();
  Fragments mine = {sums, a, b};
  self.meet(self.warp(), Words::kName, site, &mine, multiply_warp<Words>);
}

template void multiply<Bfloat16Words>(float*, const uint32_t*, const uint32_t*, const Site&);
template void multiply<Float16Words>(float*, const uint32_t*, const uint32_t*, const Site&);
template void multiply<Tensorfloat32Words>(float*, const uint32_t*, const uint32_t*, const Site&);

}  // namespace resflow::cuda::emulator
