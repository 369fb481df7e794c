// Products in each precision: a word of a candidate's row (the operand) times a word of weights, added to a sum.
//
// Rows are rounded to the precision once per layer; sums are float32, or int32 for int8. Without dot-product
// instructions on words, a word is multiplied in two parts: in int8 with the same result, in bfloat16 by float32
// products of the rounded operands.
#pragma once

#include "core/precision.h"
#include "core/quantize.h"

namespace resflow::cpu::RESFLOW_TARGET {

// Rows as words. In int8 a row's values are `scale` times signed bytes, and `sum` is the sum of the bytes.
struct Operand {
  const float* words;
  int64_t stride;
  const float* scale;
  const int32_t* sum;

  Operand row(int64_t r) const { return {words + r * stride, stride, scale + r, sum + r}; }
};

#if !defined(RESFLOW_DOT_PRODUCTS)
inline void store_bfloat16(uint16_t* to, Lanes a) {
  const Ints bits = as_ints(a);
  const Ints rounded = bits + broadcast_int(0x7fff) + (shift_right<16>(bits) & broadcast_int(1));
  // A NaN must not be rounded to infinity: it keeps its upper half, as a quiet NaN.
  const Ints quiet = (bits & broadcast_int(static_cast<int32_t>(0xffbf0000))) + broadcast_int(0x00400000);
  const Mask number = less(absolute(a), broadcast(__builtin_huge_valf()));
  const Mask infinite = less(broadcast(3.4028235e38f), absolute(a));
  store_upper_halves(to, as_ints(select(number, as_lanes(rounded), select(infinite, a, as_lanes(quiet)))));
}
#endif

inline uint32_t bits_of(float word) {
  uint32_t bits;
  __builtin_memcpy(&bits, &word, sizeof(bits));
  return bits;
}
inline float word_of(uint32_t bits) {
  float word;
  __builtin_memcpy(&word, &bits, sizeof(word));
  return word;
}

// Sum is the accumulator of a register block. A word is multiplied in kParts steps.
template <Precision kPrecision>
struct Product {
  static_assert(kPrecision == Precision::float32, "a precision of contract/enums.def without its Product");
  using Sum = Lanes;
  static constexpr int kParts = 1;
  static Lanes weights(const float* words, int) { return load(words); }
  static Lanes value(float word, int) { return broadcast(word); }
  static Sum add(Lanes value, Lanes weights, Sum sum) { return multiply_add(value, weights, sum); }
  static Sum begin(const Operand&, Lanes start) { return start; }
  static Lanes end(Sum sum, const Operand&, const float*, const float*) { return sum; }
};

template <>
struct Product<Precision::bfloat16> : Product<Precision::float32> {
#if defined(RESFLOW_DOT_PRODUCTS)
  static Sum add(Lanes value, Lanes weights, Sum sum) { return dot_bfloat16(value, weights, sum); }
#else
  static constexpr int kParts = 2;
  static Lanes weights(const float* words, int part) {
    const Ints pair = as_ints(load(words));
    return as_lanes(part == 0 ? shift_left<16>(pair) : pair & broadcast_int(static_cast<int32_t>(0xffff0000)));
  }
  static Lanes value(float word, int part) {
    return broadcast(word_of(part == 0 ? bits_of(word) << 16 : bits_of(word) & 0xffff0000));
  }
#endif
};

template <>
struct Product<Precision::int8> {
  using Sum = Ints;
#if defined(RESFLOW_DOT_PRODUCTS)
  static constexpr int kParts = 1;
  static Ints weights(const float* words, int) { return as_ints(load(words)); }
  static Ints value(float word, int) { return broadcast_int(static_cast<int32_t>(bits_of(word))); }
  static Sum add(Ints value, Ints weights, Sum sum) { return dot_int8(value, weights, sum); }
#else
  static constexpr int kParts = 2;
  static Ints weights(const float* words, int part) {
    const Ints bytes = as_ints(load(words));
    return (part == 0 ? bytes : shift_right<8>(bytes)) & broadcast_int(0x00ff00ff);
  }
  static Ints value(float word, int part) {
    const uint32_t bytes = bits_of(word) >> (8 * part);
    const auto low = static_cast<uint16_t>(static_cast<int8_t>(bytes));
    const auto high = static_cast<uint16_t>(static_cast<int8_t>(bytes >> 16));
    return broadcast_int(static_cast<int32_t>(static_cast<uint32_t>(high) << 16 | low));
  }
  static Sum add(Ints value, Ints weights, Sum sum) { return sum + multiply_add_int16(weights, value); }
#endif
  // Weights are packed as w + 128: the sum starts at -128 times the sum of the row's bytes to correct for that.
  static Sum begin(const Operand& row, Lanes) { return broadcast_int(-128 * row.sum[0]); }
  static Lanes end(Sum sum, const Operand& row, const float* column_scale, const float* start) {
    return multiply_add(to_float(sum), broadcast(row.scale[0]) * load(column_scale), load(start));
  }
};

inline Lanes load_values(const float* from) { return load(from); }
inline Lanes load_values(const uint16_t* from) { return load_bfloat16(from); }
inline Lanes load_values(const int8_t* from) { return load_int8(from); }

// 16 values, zeros past `count`.
template <class Source>
inline Lanes load_values(const Source* from, int64_t count) {
  if (count >= kLane) return load_values(from);
  Source values[kLane] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = from[i];
  return load_values(values);
}

// A row's scale. Magnitudes are compared as integers: they keep their order, infinity and NaN above all numbers.
template <class Source>
inline float scale_of(const Source* row, int64_t columns) {
  Ints largest = broadcast_int(0);
  int64_t i = 0;
  for (; i + kLane <= columns; i += kLane) largest = max(largest, as_ints(absolute(load_values(row + i))));
  if (i < columns) largest = max(largest, as_ints(absolute(load_values(row + i, columns - i))));
  return int8_scale(word_of(static_cast<uint32_t>(horizontal_max(largest))));
}

// The buffers that make_operand fills: words [rows][words] plus room for kLane more, scale [rows] and sum [rows].
struct OperandBuffer {
  float* words;
  float* scale;
  int32_t* sum;

  OperandBuffer(float* scratch, int64_t rows, int64_t words_per_row)
      : words(scratch),
        scale(scratch + pad_to_lane(rows * words_per_row + kLane)),
        sum(reinterpret_cast<int32_t*>(scale + pad_to_lane(rows))) {}
};

// Rounds a row to signed bytes times `scale`, by core/quantize.h's reciprocal; returns the sum of the bytes.
template <class Source>
inline int32_t round_to_bytes(const Source* row, int64_t columns, float scale, int8_t* to) {
  const float reciprocal = int8_reciprocal(scale);
  if (reciprocal == 0.0f) {
    for (int64_t i = 0; i < columns; ++i) to[i] = 0;
    return 0;
  }
  const Lanes steps = broadcast(reciprocal);
  Ints sum = broadcast_int(0);
  int64_t i = 0;
  for (; i + kLane <= columns; i += kLane) {
    const Ints value = to_int(load_values(row + i) * steps);
    store_low_bytes(to + i, value);
    sum = sum + value;
  }
  if (i < columns) {
    const Ints value = to_int(load_values(row + i, columns - i) * steps);
    store_low_bytes(to + i, value);
    sum = sum + value;
  }
  return horizontal_sum(sum);
}

// Converts a row to bfloat16, or widens it to float32.
inline void store_values(uint16_t* to, Lanes values) { store_bfloat16(to, values); }
inline void store_values(float* to, Lanes values) { store(to, values); }
template <class Source, class Target>
inline void convert(const Source* row, int64_t columns, Target* to) {
  int64_t i = 0;
  for (; i + kLane <= columns; i += kLane) store_values(to + i, load_values(row + i));
  if (i < columns) store_values(to + i, load_values(row + i, columns - i));
}

// Rounds rows [rows][columns] to words; a row's values begin `lead` elements into its first word.
template <Precision kPrecision, class Source>
inline Operand make_operand(const Source* x, int64_t stride, int64_t rows, int64_t columns, int64_t lead, int64_t words,
                            const OperandBuffer& buffer) {
  if constexpr (kPrecision == Precision::int8) {
    for (int64_t r = 0; r < rows; ++r) buffer.scale[r] = scale_of(x + r * stride, columns);
  }
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    float* const out = buffer.words + r * words;
    if (words > 0) out[0] = out[words - 1] = 0.0f;
    if constexpr (kPrecision == Precision::int8) {
      buffer.sum[r] = round_to_bytes(x, columns, buffer.scale[r], reinterpret_cast<int8_t*>(out) + lead);
    } else if constexpr (kPrecision == Precision::bfloat16) {
      convert(x, columns, reinterpret_cast<uint16_t*>(out) + lead);
    } else {
      static_assert(kPrecision == Precision::float32, "a precision of contract/enums.def without its rounding");
      convert(x, columns, out);
    }
  }
  return {buffer.words, words, buffer.scale, buffer.sum};
}

}  // namespace resflow::cpu::RESFLOW_TARGET
