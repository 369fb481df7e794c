#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "emulator_kernels_sm90.h"
#include "emulator_launch.h"

using namespace resflow::testing;

namespace {

// Rows of `depth` small integers as 16-bit values, `stride` apart.
struct Matrix {
  std::vector<float> values;
  std::vector<uint16_t> words;
  int rows, depth, stride;

  Matrix(int rows, int depth, int stride, uint32_t (*pair)(float, float), std::mt19937& generator)
      : values(rows * depth), words(rows * stride), rows(rows), depth(depth), stride(stride) {
    for (int row = 0; row < rows; ++row) {
      for (int k = 0; k < depth; ++k) {
        values[row * depth + k] = static_cast<float>(generator() % 9) - 4.0f;
        words[row * stride + k] = static_cast<uint16_t>(pair(values[row * depth + k], 0.0f));
      }
    }
  }
  TensorMap map(int box_rows) const { return make_tensor_map(words.data(), depth, rows, 2 * stride, 2, 64, box_rows); }
};

// Neither rows nor depth nor columns fill their boxes.
template <class Product, int kColumns, bool kInRegisters>
void multiplies(uint32_t (*pair)(float, float)) {
  using Kernel = WarpgroupMultiply<Product, kColumns, kInRegisters>;
  constexpr int kRows = 100, kDepth = 300, kStride = 304;
  std::mt19937 generator(1);
  const Matrix a(kRows, kDepth, kStride, pair, generator), b(kColumns - 5, kDepth, kStride, pair, generator);
  std::vector<float> out(kRows * kColumns);
  Buffers buffers;
  allow(buffers, a.words, false);
  allow(buffers, b.words, false);
  allow(buffers, out, true);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    set_schedule_seed(seed);
    out.assign(out.size(), 0.0f);
    launch<Kernel>({a.map(64), b.map(kColumns), out.data(), kRows, kDepth}, 2, Kernel::kSharedBytes, nullptr);
    bool right = true;
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < kColumns; ++column) {
        float sum = 1.0f;
        for (int k = 0; k < kDepth && column < b.rows; ++k) {
          sum += a.values[row * kDepth + k] * b.values[column * kDepth + k];
        }
        right = right && out[row * kColumns + column] == sum;
      }
    }
    CHECK(right);
  }
}

std::string error_of_map(const void* base, int64_t columns, int64_t row_stride_bytes, int box_columns, int box_rows) {
  try {
    make_tensor_map(base, columns, 10, row_stride_bytes, 2, box_columns, box_rows);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST(warpgroups_multiply_what_the_copy_engine_brings) {
  multiplies<Bfloat16Product, 64, false>(bfloat16_pair);
  multiplies<Bfloat16Product, 128, true>(bfloat16_pair);
  multiplies<Float16Product, 128, false>(float16_pair);
  multiplies<Float16Product, 64, true>(float16_pair);
}

TEST(the_copy_engine_swizzles_boxes_and_fills_with_zeros) {
  constexpr int kColumns = 40, kRows = 50;
  std::vector<uint32_t> in(kColumns * kRows), bytes(12), out(1024 + 12);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i + 1);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint32_t>(1000 * i);
  Buffers buffers;
  allow(buffers, in, false);
  allow(buffers, bytes, false);
  allow(buffers, out, true);
  const TensorMap map = make_tensor_map(in.data(), kColumns, kRows, 4 * kColumns, 4, 32, 32);
  const auto element = [&](int column, int row) {
    const bool inside = column >= 0 && column < kColumns && row >= 0 && row < kRows;
    return inside ? in[row * kColumns + column] : 0;
  };
  for (const auto& [column, row] : {std::pair(4, 7), std::pair(-3, -5), std::pair(20, 30), std::pair(64, 0)}) {
    launch<CopyEngine>({map, bytes.data(), out.data(), column, row}, 1, CopyEngine::kSharedBytes, nullptr);
    bool right = true;
    for (int r = 0; r < 32; ++r) {
      for (int c = 0; c < 32; ++c) {
        right = right && out[r * 32 + (c / 4 ^ r % 8) * 4 + c % 4] == element(column + c, row + r);
      }
    }
    for (int i = 0; i < 12; ++i) right = right && out[1024 + i] == bytes[i];
    CHECK(right);
  }
}

TEST(mistakes_with_what_only_hopper_has_are_found) {
  struct Expected {
    HopperMistake mistake;
    const char* text;        // of the error; or the sums are NaN
    bool by_chance = false;  // found where the copy lands late
  };
  const Expected all[] = {
      {HopperMistake::none, "no error"},
      {HopperMistake::reads_before_landing, "NaN", true},
      {HopperMistake::reads_sums_before_wait, "NaN"},
      {HopperMistake::writes_pending_sums, "sums were written while products were adding to them"},
      {HopperMistake::arrives_twice, "all 1 have arrived in this phase already", true},
      {HopperMistake::initialises_twice, "is initialised already"},
      {HopperMistake::not_initialised, "the barrier is not initialised"},
      {HopperMistake::not_announced, "no barrier_init_done"},
      {HopperMistake::expects_too_much, "threads wait for each other: 128 for barrier_wait"},
      {HopperMistake::expects_too_little, "more bytes landed"},
      {HopperMistake::box_misaligned, "is not aligned to 1024 bytes"},
      {HopperMistake::matrix_misaligned, "which is not aligned to 1024 bytes"},
      {HopperMistake::map_outside_params, "the tensor map is not in the kernel's params"},
      {HopperMistake::no_begin, "without products_begin"},
  };
  CHECK(std::size(all) == static_cast<size_t>(HopperMistake::count));
  std::mt19937 generator(1);
  const Matrix matrix(64, 64, 64, bfloat16_pair, generator);
  std::vector<float> out(128);
  Buffers buffers;
  allow(buffers, matrix.words, false);
  allow(buffers, out, true);
  for (const Expected& expected : all) {
    uint64_t found = 0;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      set_schedule_seed(seed);
      std::string seen =
          error_of<HopperMistaken>({matrix.map(64), out.data(), expected.mistake}, 1, HopperMistaken::kSharedBytes);
      if (seen.empty() && std::any_of(out.begin(), out.end(), [](float sum) { return std::isnan(sum); })) seen = "NaN";
      if (seen.empty()) continue;
      if (!contains(seen, expected.text)) std::printf("expected '%s', got '%s'\n", expected.text, seen.c_str());
      CHECK(contains(seen, expected.text));
      ++found;
    }
    if (expected.mistake == HopperMistake::none) {
      CHECK(found == 0);
    } else if (expected.by_chance) {
      CHECK(found > 0);
    } else {
      CHECK(found == kSeeds);
    }
  }
}

TEST(only_hopper_has_them) {
  std::mt19937 generator(1);
  const Matrix matrix(64, 64, 64, bfloat16_pair, generator);
  std::vector<float> out(128);
  Buffers buffers;
  allow(buffers, matrix.words, false);
  allow(buffers, out, true);
  const Device h100 = current_device();
  set_device({108, 166912, 80});
  const std::string error = error_of<HopperMistaken>({matrix.map(64), out.data(), HopperMistake::none}, 1, 20000);
  set_device(h100);
  CHECK(contains(error, "needs a GPU of capability 90, not 80"));
}

TEST(the_copy_engine_reads_what_buffers_allow) {
  std::mt19937 generator(1);
  const Matrix matrix(64, 64, 64, bfloat16_pair, generator);
  std::vector<float> out(128);
  Buffers buffers;
  buffers.allow(matrix.words.data(), 2 * 64 * 63, false);
  allow(buffers, out, true);
  const std::string error =
      error_of<HopperMistaken>({matrix.map(64), out.data(), HopperMistake::none}, 1, HopperMistaken::kSharedBytes);
  CHECK(contains(error, "copy_box: reads 128 bytes"));
}

TEST(tensor_maps_keep_the_rules_of_the_copy_engine) {
  alignas(16) static const uint16_t values[8] = {};
  CHECK(error_of_map(values, 64, 128, 64, 256).empty());
  CHECK(contains(error_of_map(values + 1, 64, 128, 64, 256), "base must be aligned to 16 bytes"));
  CHECK(contains(error_of_map(values, 64, 136, 64, 256), "row_stride_bytes must be a multiple of 16"));
  CHECK(contains(error_of_map(values, 65, 128, 64, 256), "row_stride_bytes must be"));
  CHECK(contains(error_of_map(values, 64, 128, 32, 256), "box_columns must be 128 bytes, got 32"));
  CHECK(contains(error_of_map(values, 64, 128, 64, 257), "box_rows must be 1 to 256, got 257"));
  CHECK(contains(error_of_map(values, 0, 128, 64, 256), "columns must be"));
}
