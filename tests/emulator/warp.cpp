#include "emulator/warp.h"

#include <cstring>

namespace resflow::cuda::emulator {

namespace {

struct Exchange {
  uint64_t value, result;
  int from;
};

struct Vote {
  bool holds;
  uint32_t result;
};

struct MatrixRow {
  uint32_t* out;
  const void* row;
};

template <class T>
T& of_lane(void* const* lanes, int lane) {
  return *static_cast<T*>(lanes[lane]);
}

}  // namespace

uint64_t exchange(uint64_t value, int from, const char* what, const Site& site) {
  Block& self = block();
  if (from < 0 || from >= kWarp) self.fail(std::string(what) + " from lane " + std::to_string(from), site);
  Exchange mine = {value, 0, from};
  self.meet(self.warp(), what, site, &mine, [](void* const* lanes) {
    for (int i = 0; i < kWarp; ++i) {
      auto& to = of_lane<Exchange>(lanes, i);
      to.result = of_lane<Exchange>(lanes, to.from).value;
    }
  });
  return mine.result;
}

uint32_t ballot(bool holds, const Site& site) {
  Block& self = block();
  Vote mine = {holds, 0};
  self.meet(self.warp(), "ballot", site, &mine, [](void* const* lanes) {
    uint32_t votes = 0;
    for (int i = 0; i < kWarp; ++i) votes |= static_cast<uint32_t>(of_lane<Vote>(lanes, i).holds) << i;
    for (int i = 0; i < kWarp; ++i) of_lane<Vote>(lanes, i).result = votes;
  });
  return mine.result;
}

void sync_warp(const Site& site) {
  Block& self = block();
  self.meet(self.warp(), "sync_warp", site, nullptr, [](void* const*) {});
}

void load_matrices(uint32_t* out, const void* row, const Site& site) {
  Block& self = block();
  self.require_shared(row, 16, 16, "load_matrices", site);
  MatrixRow mine = {out, row};
  self.meet(self.warp(), "load_matrices", site, &mine, [](void* const* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int i = 0; i < kWarp; ++i) {
        const void* const from = of_lane<MatrixRow>(lanes, 8 * matrix + i / 4).row;
        std::memcpy(&of_lane<MatrixRow>(lanes, i).out[matrix], static_cast<const char*>(from) + 4 * (i % 4), 4);
      }
    }
  });
}

}  // namespace resflow::cuda::emulator
