// Matrix products by a warp, from the fragments device/ptx.h documents.
#pragma once

#include <cstdint>

#include "core/number_formats.h"
#include "emulator/block.h"

namespace resflow::cuda::emulator {

// What the words of a product's operands hold: kPerWord values.
struct Bfloat16Words {
  static constexpr int kPerWord = 2;
  static constexpr const char* kName = "Bfloat16Product";
  static void unpack(uint32_t word, float* values) {
    values[0] = from_bfloat16(static_cast<uint16_t>(word));
    values[1] = from_bfloat16(static_cast<uint16_t>(word >> 16));
  }
};

struct Float16Words {
  static constexpr int kPerWord = 2;
  static constexpr const char* kName = "Float16Product";
  static void unpack(uint32_t word, float* values) {
    values[0] = from_float16(static_cast<uint16_t>(word));
    values[1] = from_float16(static_cast<uint16_t>(word >> 16));
  }
};

// Tensor cores read the upper 19 bits of a word.
struct Tensorfloat32Words {
  static constexpr int kPerWord = 1;
  static constexpr const char* kName = "Tensorfloat32Product";
  static void unpack(uint32_t word, float* values) {
    word &= 0xffffe000;
    __builtin_memcpy(values, &word, sizeof(word));
  }
};

template <class Words>
void multiply(float* sums, const uint32_t* a, const uint32_t* b, const Site& site);

}  // namespace resflow::cuda::emulator
