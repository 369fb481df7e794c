// Weights as the copy engine of a GPU brings them into shared memory and its tensor cores read them from there.
//
// A layer's matrix [inputs, padded columns] is cut along its inputs into chunks of 64; a chunk is a row of 128 bytes a
// column. Its 16-byte pieces are swizzled, so that 8 rows of one piece lie in 8 different groups of 4 banks: piece p of
// row r lies at piece p ^ (r % 8). Zeros past the inputs and the width.
#pragma once

#include <cstdint>

#include "core/contract.h"

namespace resflow {

constexpr int64_t kChunkInputs = 64;
constexpr int64_t kChunkRowBytes = 128;
constexpr int64_t kTensorAlignment = 1024;  // 8 rows: the swizzle's period

constexpr bool has_tensor_panels(Precision precision) {
  return precision == Precision::bfloat16 || precision == Precision::float16;
}

struct TensorPanels {
  int64_t inputs;
  int64_t padded;  // columns

  constexpr int64_t chunks() const { return (inputs + kChunkInputs - 1) / kChunkInputs; }
  constexpr int64_t chunk_bytes() const { return padded * kChunkRowBytes; }
  constexpr __int128 bytes() const { return static_cast<__int128>(chunks()) * chunk_bytes(); }

  // Where the 16-bit element of an input and a column lies.
  constexpr int64_t byte_of(int64_t input, int64_t column) const {
    const int64_t within = input % kChunkInputs;
    const int64_t piece = within / 8 ^ column % 8;
    return input / kChunkInputs * chunk_bytes() + column * kChunkRowBytes + piece * 16 + within % 8 * 2;
  }
};

}  // namespace resflow
