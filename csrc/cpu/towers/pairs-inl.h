// Register blocks of 2 x 2 matrix products, for instruction sets that have them (RESFLOW_MATRIX_PRODUCTS).
//
// A matrix product adds 2 words of 2 columns times 2 words of 2 rows to 4 sums. The packed layout is that of all
// instruction sets: 2 consecutive words of a panel's columns, zipped, are such columns. Rows are taken in pairs, whose
// sums are zipped likewise; the last of an odd number is paired with itself.
//
// Every sum is the same chain over words as in tower-inl.h: by Arm's manual bfmmla is equivalent to two bfdot for each
// sum, with the same roundings in the same order, and sums of bytes are exact. So a sum depends neither on the row
// beside its own nor on the word at which a pair of words begins, and dot products may add the last of an odd number.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

template <Precision kPrecision, int kRows>
inline void multiply_pairs(const Operand& x, int64_t words, const float* panel, int64_t panel_stride,
                           const float* column_scale, const float* const* start, float* out);

template <Precision kPrecision>
#if defined(RESFLOW_MATRIX_PRODUCTS)
constexpr bool kInPairs = kPrecision != Precision::float32;
#else
constexpr bool kInPairs = false;
#endif

// The products with the highest rate: of so many words per lane of a register.
template <Precision kPrecision, bool = kInPairs<kPrecision>>
struct PeakProduct : Product<kPrecision> {
  static constexpr int kWordsPerLane = 1;
};

#if defined(RESFLOW_MATRIX_PRODUCTS)

static_assert(kBlockLanes == 1);

// The sums of a pair of rows, [register][column][row]: `low` of columns 0, 1, 4, 5, ..., `high` of the others.
template <class Sum>
struct PairSums {
  Sum low, high;
};

// Adds the products of words of a panel's row, alternating with those of another, and each pair's words `x`.
template <class Sum, int kPairs, class Add>
inline void add_words(const float* panel, const float* other, const float32x4_t (&x)[kPairs],
                      PairSums<Sum> (&sums)[kPairs], Add add) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const float32x4_t a = vld1q_f32(panel + 4 * q), b = vld1q_f32(other + 4 * q);
    const float32x4_t low = vzip1q_f32(a, b), high = vzip2q_f32(a, b);
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      sums[p].low.v[q] = add(low, x[p], sums[p].low.v[q]);
      sums[p].high.v[q] = add(high, x[p], sums[p].high.v[q]);
    }
  }
}

template <Precision kPrecision, int kRows>
inline void multiply_pairs(const Operand& x, int64_t words, const float* panel, int64_t panel_stride,
                           const float* column_scale, const float* const* start, float* out) {
  using P = Product<kPrecision>;
  constexpr int kPairs = (kRows + 1) / 2;
  const auto second_of = [](int pair) { return 2 * pair + 1 < kRows ? 2 * pair + 1 : 2 * pair; };
  PairSums<typename P::Sum> sums[kPairs];
  float32x4_t value[kPairs];
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p) {
    const int r = 2 * p, s = second_of(p);
    const auto first = P::begin(x.row(r), load(start[r])), second = P::begin(x.row(s), load(start[s]));
    sums[p] = {zip_low(first, second), zip_high(first, second)};
  }
  int64_t k = 0;
  for (; k + 2 <= words; k += 2, panel += 2 * panel_stride) {
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      value[p] = vcombine_f32(vld1_f32(x.row(2 * p).words + k), vld1_f32(x.row(second_of(p)).words + k));
    }
    add_words(panel, panel + panel_stride, value, sums,
              [](auto weights, auto rows, auto sum) { return matrix_product(weights, rows, sum); });
  }
  if (k < words) {
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      value[p] = vzip1q_f32(vdupq_n_f32(x.row(2 * p).words[k]), vdupq_n_f32(x.row(second_of(p)).words[k]));
    }
    add_words(panel, panel, value, sums,
              [](auto weights, auto rows, auto sum) { return dot_product(weights, rows, sum); });
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p) {
    const auto& [low, high] = sums[p];
    const int r = 2 * p, s = second_of(p);
    store(out + r * kPanelWidth, P::end(unzip_first(low, high), x.row(r), column_scale, start[r]));
    if (s != r) store(out + s * kPanelWidth, P::end(unzip_second(low, high), x.row(s), column_scale, start[s]));
  }
}

// Like Product, for measuring the peak.
template <Precision kPrecision>
struct PeakProduct<kPrecision, true> : Product<kPrecision> {
  using Sum = typename Product<kPrecision>::Sum;
  static constexpr int kWordsPerLane = 2;
  static Lanes weights(const float* words, int) { return load(words); }
  static Lanes value(float word, int) { return broadcast(word); }
  static Sum add(Lanes value, Lanes weights, Sum sum) {
    for (int q = 0; q < 4; ++q) sum.v[q] = matrix_product(weights.v[q], value.v[q], sum.v[q]);
    return sum;
  }
};

#endif

}  // namespace resflow::cpu::RESFLOW_TARGET
