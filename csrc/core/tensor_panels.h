// Weights in the layout in which a GPU's copy engine brings them into shared memory and its tensor cores read them.
//
// A layer's matrix [inputs, padded columns] is divided along its inputs into chunks of 64; a chunk has one row of 128
// bytes per column. The 16-byte pieces of a row are swizzled, so that the same piece of 8 rows is in 8 different groups
// of 4 banks: piece p of row r is stored as piece p ^ (r % 8). Values past the inputs and the width are zeros.
#pragma once

#include <cstdint>

#include "core/contract.h"

namespace resflow {

constexpr int64_t kTensorBytes = 2;  // per element
constexpr int64_t kChunkInputs = packed::chunk_inputs;
constexpr int64_t kChunkRowBytes = kChunkInputs * kTensorBytes;
constexpr int64_t kPieceElements = packed::piece_bytes / kTensorBytes;
constexpr int64_t kTensorAlignment = packed::tensor_alignment;

constexpr bool has_tensor_panels(Precision precision) { return has(precision, precision_flag::tensor_panels); }

#define RESFLOW_PRECISION(name, code, bytes, flags) \
  static_assert(!has_tensor_panels(Precision::name) || bytes == kTensorBytes, "tensor panels hold 16-bit elements");
#include "contract/enums.def"

struct TensorPanels {
  int64_t inputs;
  int64_t padded;  // columns

  constexpr int64_t chunks() const { return (inputs + kChunkInputs - 1) / kChunkInputs; }
  constexpr int64_t chunk_bytes() const { return padded * kChunkRowBytes; }
  constexpr __int128 bytes() const { return static_cast<__int128>(chunks()) * chunk_bytes(); }

  // Byte offset of the 16-bit element of an input and a column.
  constexpr int64_t byte_of(int64_t input, int64_t column) const {
    const int64_t within = input % kChunkInputs;
    const int64_t piece = within / kPieceElements ^ column % 8;
    return input / kChunkInputs * chunk_bytes() + column * kChunkRowBytes + piece * packed::piece_bytes +
           within % kPieceElements * kTensorBytes;
  }
};

}  // namespace resflow
