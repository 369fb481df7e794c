#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "emulator_kernels.h"
#include "emulator_launch.h"

using namespace resflow::testing;

namespace {

// Small integers are exact in every format, so that sums are too.
template <class Product>
void multiplies(int per_word, uint32_t (*word_of)(float, float)) {
  std::mt19937 generator(1);
  const int depth = 8 * per_word;
  std::vector<float> a(16 * depth), b(8 * depth);
  for (float& value : a) value = static_cast<float>(generator() % 17) - 8.0f;
  for (float& value : b) value = static_cast<float>(generator() % 17) - 8.0f;
  const auto words = [&](const std::vector<float>& values) {
    std::vector<uint32_t> result;
    for (size_t i = 0; i < values.size(); i += per_word) result.push_back(word_of(values[i], values[i + per_word - 1]));
    return result;
  };
  const std::vector<uint32_t> a_words = words(a), b_words = words(b);
  std::vector<float> out(128);
  Buffers buffers;
  allow(buffers, a_words, false);
  allow(buffers, b_words, false);
  allow(buffers, out, true);
  launch<Multiply<Product>>({a_words.data(), b_words.data(), out.data()}, 1, 0, nullptr);
  bool right = true;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = 1.0f;
      for (int k = 0; k < depth; ++k) sum += a[row * depth + k] * b[column * depth + k];
      right = right && out[row * 8 + column] == sum;
    }
  }
  CHECK(right);
}

}  // namespace

TEST(products_are_those_of_plain_matrices) {
  multiplies<Bfloat16Product>(2, bfloat16_pair);
  multiplies<Float16Product>(2, float16_pair);
  // The lowest 13 bits of a word are not read.
  multiplies<Tensorfloat32Product>(1, [](float value, float) { return tensorfloat32_word(value) | 0x1fff; });
}

TEST(matrices_are_loaded_as_products_take_them) {
  std::vector<uint16_t> in(256);
  for (int i = 0; i < 256; ++i) in[i] = static_cast<uint16_t>(i);
  std::vector<uint32_t> out(128);
  Buffers buffers;
  allow(buffers, in, false);
  allow(buffers, out, true);
  launch<LoadMatrices>({in.data(), out.data()}, 1, 512, nullptr);
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int at = (lane / 4 + 8 * (i % 2)) * 16 + 2 * (lane % 4 + 4 * (i / 2));
      right = right && out[4 * lane + i] == static_cast<uint32_t>(at | (at + 1) << 16);
    }
  }
  CHECK(right);
}

TEST(lanes_exchange_values_and_votes) {
  std::vector<int32_t> out(96);
  Buffers buffers;
  allow(buffers, out, true);
  launch<Shuffles>({out.data()}, 1, 0, nullptr);
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) {
    right =
        right && out[lane] == 32 + (lane ^ 5) && out[32 + lane] == 32 + (lane + 3) % 32 && out[64 + lane] == 0x49249249;
  }
  CHECK(right);
}

TEST(a_copy_is_there_after_its_wait_and_not_before) {
  std::vector<float> in(256), out(512);
  for (int i = 0; i < 256; ++i) in[i] = static_cast<float>(i);
  Buffers buffers;
  allow(buffers, in, false);
  allow(buffers, out, true);
  launch<CopyAsync>({in.data(), out.data()}, 1, 64 * 32, nullptr);
  for (int thread = 0; thread < 64; ++thread) {
    const float* const seen = &out[8 * thread];
    CHECK(std::isnan(seen[0]));
    CHECK(std::isnan(seen[1]));
    for (int i = 0; i < 4; ++i) CHECK(seen[2 + i] == (thread % 2 && i >= 2 ? 0.0f : in[4 * thread + i]));
    CHECK(seen[6] == 0.0f);
    CHECK(std::isnan(seen[7]));
  }
}

TEST(barriers_order_threads_and_their_lack_shows) {
  std::vector<int32_t> out(256);
  Buffers buffers;
  allow(buffers, out, true);
  const auto right = [&] {
    for (int i = 0; i < 256; ++i) {
      if (out[i] != (i + 100) % 256) return false;
    }
    return true;
  };
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_schedule_seed(seed);
    launch<Neighbours<true>>({out.data()}, 1, 1024, nullptr);
    CHECK(right());
    launch<Neighbours<false>>({out.data()}, 1, 1024, nullptr);
    CHECK(!right());
  }
}

TEST(some_warps_of_a_block_wait_for_each_other) {
  std::vector<int32_t> out(64);
  Buffers buffers;
  allow(buffers, out, true);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_schedule_seed(seed);
    launch<SomeOfBlock>({out.data()}, 1, 1024, nullptr);
    bool right = true;
    for (int i = 0; i < 64; ++i) right = right && out[i] == 63 - i;
    CHECK(right);
  }
}

TEST(blocks_wait_for_those_that_began_before) {
  std::vector<int32_t> counters(3);
  Buffers buffers;
  allow(buffers, counters, true);
  int32_t* const at = counters.data();
  launch<Tickets>({at, at + 1, at + 2, 0}, 10, 0, nullptr);
  CHECK(counters[2] == 45);
  set_zero(at, 12, nullptr);
  CHECK(contains(error_of<Tickets>({at, at + 1, at + 2, 1}, 10, 0), "waits for a block that has not run"));
}

TEST(a_seed_gives_one_order_of_blocks_and_threads) {
  std::vector<int32_t> count(1);
  const auto order = [&](uint64_t seed) {
    std::vector<int32_t> out(64 * 10);
    Buffers buffers;
    allow(buffers, count, true);
    allow(buffers, out, true);
    set_zero(count.data(), 4, nullptr);
    set_schedule_seed(seed);
    launch<Order>({count.data(), out.data()}, 10, 0, nullptr);
    return out;
  };
  std::vector<int32_t> first = order(1);
  CHECK(first == order(1));
  CHECK(first != order(2));
  std::sort(first.begin(), first.end());
  for (int i = 0; i < 640; ++i) CHECK(first[i] == i);
}

TEST(mistakes_are_found_in_any_order_of_threads) {
  struct Expected {
    Mistake mistake;
    const char* text;
  };
  const Expected all[] = {
      {Mistake::none, ""},
      {Mistake::read_outside, "thread 7: load_global: reads 4 bytes at"},
      {Mistake::misaligned, "is not aligned to 4 bytes"},
      {Mistake::write_read_only, "store_global: writes 4 bytes at"},
      {Mistake::copy_outside, "copy_async_16: reads 4 bytes at"},
      {Mistake::copy_beyond_shared, "copy_async_16: 16 bytes at byte 992 of the block's 1000 bytes"},
      {Mistake::different_collectives, "of its group wait at "},
      {Mistake::different_places, "of its group wait at shuffle_xor"},
      {Mistake::returns_early, "return"},
      {Mistake::returns_before_barrier, "return"},
      {Mistake::barriers_crossed, "threads wait for each other: 32 for sync_some(1)"},
      {Mistake::barrier_of_unlike_counts, "sync_some(1)"},
      {Mistake::writes_beyond_shared, "writes shared memory outside of the 1000 bytes"},
  };
  CHECK(std::size(all) == static_cast<size_t>(Mistake::count));
  std::vector<float> in(4), out(64);
  Buffers buffers;
  allow(buffers, in, false);
  allow(buffers, out, true);
  for (const Expected& expected : all) {
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      set_schedule_seed(seed);
      const std::string error =
          error_of<Mistaken>({in.data(), out.data(), expected.mistake}, 1, Mistaken::kSharedBytes);
      if (expected.mistake == Mistake::none) {
        CHECK(error.empty());
      } else if (!contains(error, "test kernel, block 0") || !contains(error, expected.text)) {
        std::printf("expected '%s', got '%s'\n", expected.text, error.c_str());
        CHECK(false);
      }
    }
  }
}

TEST(every_block_finds_its_shared_memory_poisoned) {
  std::vector<float> out(320, 0.0f);
  Buffers buffers;
  allow(buffers, out, true);
  launch<Unwritten>({out.data()}, 10, 128, nullptr);
  for (const float value : out) CHECK(std::isnan(value));
}

TEST(a_launch_asks_for_what_the_device_has) {
  std::vector<float> out(32);
  Buffers buffers;
  allow(buffers, out, true);
  CHECK(error_of<Unwritten>({out.data()}, 1, 232448).empty());
  CHECK(contains(error_of<Unwritten>({out.data()}, 1, 232449), "shared_bytes must be 0 to 232448, got 232449"));
  const Device h100 = current_device();
  set_device({108, 166912, 80});
  CHECK(contains(error_of<Unwritten>({out.data()}, 1, 166913), "shared_bytes must be 0 to 166912"));
  set_device(h100);
  CHECK(error_of<Unwritten>({nullptr}, 0, 0).empty());
}

TEST(buffers_are_allowed_while_their_scope_lives) {
  std::vector<float> out(32);
  {
    Buffers outer;
    allow(outer, out, false);
    CHECK(contains(error_of<Unwritten>({out.data()}, 1, 128), "no writable buffer holds"));
    Buffers inner;
    allow(inner, out, true);
    CHECK(error_of<Unwritten>({out.data()}, 1, 128).empty());
  }
  CHECK(contains(error_of<Unwritten>({out.data()}, 1, 128), "no buffer is registered"));
}

int main() { return run_tests(); }
