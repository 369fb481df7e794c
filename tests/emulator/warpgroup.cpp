// Products of a warpgroup (wgmma). Each warp has its own queue of them and is done with them when it waits: only then
// are operands read and sums seen.
#include <algorithm>
#include <cstring>

#include "emulator/hopper.h"

namespace resflow::cuda::emulator {

namespace {

constexpr int kRows = 16, kDepth = 16;  // of a warp's part of a product
constexpr int kGroupBytes = 1024;       // 8 rows of 128 bytes

// Row 0 of a matrix of `rows` rows that a descriptor (describe_matrix) describes.
const char* described(uint64_t descriptor, int rows, const WarpgroupOperands& operands) {
  const auto field = [&](int first, int bits) { return descriptor >> first & ((uint64_t(1) << bits) - 1); };
  const auto address = static_cast<uint32_t>(field(0, 14) << 4);
  Block& self = block();
  if (field(62, 2) != 1 || field(32, 14) << 4 != kGroupBytes || field(49, 3) != 0) {
    self.fail(std::string(operands.what) + ": a descriptor that is not of 128-byte rows, swizzled, in groups of 8",
              operands.site);
  }
  if (address % kGroupBytes >= 128 || address % 32) {
    self.fail(std::string(operands.what) + ": a matrix at shared address " + std::to_string(address) +
                  ", which is not aligned to 1024 bytes but for steps of 32 within its rows of 128",
              operands.site);
  }
  const char* const first = self.shared_pointer(address);
  self.require_shared(first - address % kGroupBytes, int64_t(rows) / 8 * kGroupBytes, 16, operands.what, operands.site);
  return first;
}

// Two 16-bit values at `word` of 8 of a row: which 16 bytes they are in is exchanged by address bits 7 to 9.
uint32_t described_word(const char* matrix, int row, int word) {
  const Block& self = block();
  const uint32_t at =
      self.shared_address(matrix) + static_cast<uint32_t>(row / 8 * kGroupBytes + row % 8 * 128 + word * 4);
  uint32_t result;
  std::memcpy(&result, self.shared_pointer(at ^ (at >> 7 & 7) << 4), sizeof(result));
  return result;
}

// Calls each(lane, register, row, column) for what the lanes of a warp hold of sums.
template <class Each>
void for_registers(int columns, const Each& each) {
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < columns / 2; ++i) {
      each(lane, i, lane / 4 + 8 * (i % 4 / 2), i / 4 * 8 + 2 * (lane % 4) + i % 2);
    }
  }
}

void compute(const PendingProduct& product, int warp_of_group, float* sums) {
  float a[kRows][kDepth], b[kDepth][128];
  for (int lane = 0; product.a_in_registers && lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      product.unpack(product.a_registers[lane][i], &a[lane / 4 + 8 * (i % 2)][2 * (lane % 4 + 4 * (i / 2))]);
    }
  }
  for (int row = 0; !product.a_in_registers && row < kRows; ++row) {
    for (int word = 0; word < 8; ++word) {
      product.unpack(described_word(product.a, kRows * warp_of_group + row, word), &a[row][2 * word]);
    }
  }
  for (int column = 0; column < product.columns; ++column) {
    for (int word = 0; word < 8; ++word) {
      float values[2];
      product.unpack(described_word(product.b, column, word), values);
      b[2 * word][column] = values[0];
      b[2 * word + 1][column] = values[1];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    float* const to = sums + row * product.columns;
    for (int depth = 0; depth < kDepth; ++depth) {
      for (int column = 0; column < product.columns; ++column) to[column] += a[row][depth] * b[depth][column];
    }
  }
}

// The sums that lanes `operands` are of, taken out of their registers if no earlier product has them.
size_t take_sums(WarpProducts& products, const WarpgroupOperands* const* operands) {
  const int columns = operands[0]->columns;
  const auto same = [&](const PendingSums& sums) {
    for (int i = 0; i < kWarp; ++i) {
      if (sums.registers[i] != operands[i]->sums) return false;
    }
    return sums.columns == columns;
  };
  const auto found = std::find_if(products.sums.begin(), products.sums.end(), same);
  if (found != products.sums.end()) return static_cast<size_t>(found - products.sums.begin());
  PendingSums sums = {columns, {}, std::vector<float>(static_cast<size_t>(kRows) * columns), 0};
  for (int i = 0; i < kWarp; ++i) sums.registers[i] = operands[i]->sums;
  for_registers(columns, [&](int lane, int i, int row, int column) {
    sums.values[row * columns + column] = sums.registers[lane][i];
    std::memset(&sums.registers[lane][i], SharedMemory::kPoison, sizeof(float));
  });
  products.sums.push_back(std::move(sums));
  return products.sums.size() - 1;
}

void issue(void* const* arguments) {
  const WarpgroupOperands* operands[kWarpgroup];
  for (int i = 0; i < kWarpgroup; ++i) operands[i] = static_cast<const WarpgroupOperands*>(arguments[i]);
  const WarpgroupOperands& first = *operands[0];
  Block& self = block();
  for (const WarpgroupOperands* other : operands) {
    if (other->b != first.b || (!first.a_registers && other->a != first.a)) {
      self.fail(std::string(first.what) + ": the threads of a warpgroup describe different matrices", first.site);
    }
  }
  PendingProduct product = {first.unpack, first.columns, 0, first.a_registers != nullptr, {}, nullptr, nullptr};
  if (!first.a_registers) product.a = described(first.a, 64, first);
  product.b = described(first.b, first.columns, first);
  for (int warp = 0; warp < kWarpgroup / kWarp; ++warp) {
    const WarpgroupOperands* const* const mine = operands + warp * kWarp;
    WarpProducts& products =
        hopper(first.what, first.site).products((self.thread().index / kWarpgroup * kWarpgroup) / kWarp + warp);
    if (!products.begun) self.fail(std::string(first.what) + " without products_begin", first.site);
    product.sums = take_sums(products, mine);
    products.sums[product.sums].last_batch = products.batches;
    for (int i = 0; first.a_registers && i < kWarp; ++i) {
      std::copy_n(mine[i]->a_registers, 4, product.a_registers[i].begin());
    }
    products.products.push_back({products.batches, product});
  }
}

// Sums go back to their registers once no product that is left adds to them.
void give_back_sums(WarpProducts& products, const Site& site) {
  for (PendingSums& sums : products.sums) {
    if (sums.last_batch >= products.batches_done || sums.columns == 0) continue;
    for_registers(sums.columns, [&](int lane, int i, int row, int column) {
      float& to = sums.registers[lane][i];
      uint32_t found;
      std::memcpy(&found, &to, sizeof(found));
      if (found != 0xffffffff)
        block().fail("products_wait: sums were written while products were adding to them", site);
      to = sums.values[row * sums.columns + column];
    });
    sums = {};  // stays, so that the others keep their places
  }
  if (products.products.empty()) products.sums.clear();
}

struct Wait {
  int left;
  Site site;
};

void wait(void* const* arguments) {
  const auto& asked = *static_cast<const Wait*>(arguments[0]);
  const int warp = block().thread().index / kWarp;
  WarpProducts& products = hopper("products_wait", asked.site).products(warp);
  products.batches_done = std::max(products.batches_done, products.batches - asked.left);
  size_t done = 0;
  for (; done < products.products.size() && products.products[done].first < products.batches_done; ++done) {
    const PendingProduct& product = products.products[done].second;
    compute(product, warp % (kWarpgroup / kWarp), products.sums[product.sums].values.data());
  }
  products.products.erase(products.products.begin(), products.products.begin() + static_cast<ptrdiff_t>(done));
  give_back_sums(products, asked.site);
}

WarpProducts& own_products(const char* what, const Site& site) {
  block().warpgroup(site);
  return hopper(what, site).products(block().thread().index / kWarp);
}

}  // namespace

void multiply(WarpgroupOperands operands) {
  hopper(operands.what, operands.site);
  block().meet(block().warpgroup(operands.site), operands.what, operands.site, &operands, issue);
}

void products_begin(const Site& site) {
  WarpProducts& products = own_products("products_begin", site);
  block().meet(block().warp(), "products_begin", site, &products,
               [](void* const* all) { static_cast<WarpProducts*>(all[0])->begun = true; });
}

void products_commit(const Site& site) {
  WarpProducts& products = own_products("products_commit", site);
  block().meet(block().warp(), "products_commit", site, &products, [](void* const* all) {
    auto& products = *static_cast<WarpProducts*>(all[0]);
    products.begun = false;
    ++products.batches;
  });
}

void products_wait(int left, const Site& site) {
  own_products("products_wait", site);
  Wait asked = {left, site};
  block().meet(block().warp(), "products_wait", site, &asked, wait);
}

}  // namespace resflow::cuda::emulator
