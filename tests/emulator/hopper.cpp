#include "emulator/hopper.h"

#include <algorithm>
#include <cstring>

namespace resflow::cuda::emulator {

namespace {

// What an initialised barrier's 8 bytes hold; anything else was written over it.
constexpr uint64_t kBarrierMark = 0x7265697272616272;
// A barrier counts up to this many bytes (PTX: mbarrier's tx-count).
constexpr uint32_t kMostBytes = (1u << 20) - 1;
constexpr int kMostArrivals = (1 << 20) - 1;

// Where byte `at` of a box lies, as rows of 128 bytes swizzled over 1024.
int64_t swizzled(int64_t at) { return at ^ (at >> 7 & 7) << 4; }

// The columns [first, end) of the box that lie in the tensor.
struct Inside {
  int64_t first, end;
};

Inside columns_inside(const TensorMap& map, int64_t column) {
  return {std::max<int64_t>(0, -column), std::min<int64_t>(map.box_columns, map.columns - column)};
}

void land_box(const EngineCopy& copy) {
  const TensorMap& map = *copy.map;
  char* const to = static_cast<char*>(copy.to);
  std::memset(to, 0, copy.bytes);
  const Inside inside = columns_inside(map, copy.column);
  const int64_t element = map.element_bytes;
  for (int64_t r = 0; r < map.box_rows; ++r) {
    const int64_t row = copy.row + r;
    if (row < 0 || row >= map.rows) continue;
    for (int64_t c = inside.first; c < inside.end; ++c) {
      const char* const from = map.base + row * map.row_stride_bytes + (copy.column + c) * element;
      std::memcpy(to + swizzled((r * map.box_columns + c) * element), from, static_cast<size_t>(element));
    }
  }
}

}  // namespace

Hopper& hopper(const char* what, const Site& site) {
  Block& self = block();
  if (self.grid().capability != 90) {
    self.fail(std::string(what) + " needs a GPU of capability 90, not " + std::to_string(self.grid().capability), site);
  }
  if (!self.background()) self.set_background(std::make_unique<Hopper>());
  return static_cast<Hopper&>(*self.background());
}

bool Hopper::step(Random& random) {
  if (copies_.empty()) return false;
  std::swap(copies_[random.below(static_cast<uint32_t>(copies_.size()))], copies_.back());
  const EngineCopy copy = copies_.back();
  copies_.pop_back();
  if (copy.map) {
    land_box(copy);
  } else {
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  ByteBarrier& on = barriers_.at(copy.barrier);
  on.bytes -= copy.bytes;
  end_phase_if_done(on);
  return true;
}

void Hopper::end_phase_if_done(ByteBarrier& barrier) {
  if (barrier.missing) return;
  if (barrier.bytes < 0) block().fail("more bytes landed in a barrier's phase than were expected in it");
  if (barrier.bytes) return;
  ++barrier.phase;
  barrier.missing = barrier.arrivals;
}

uint64_t* Hopper::barrier_of(int rank, uint64_t* at, const char* what, const Site& site) {
  Block& self = block();
  self.require_shared(at, 8, 8, what, site);
  if (rank < 0 || rank >= self.grid().cluster) {
    self.fail(std::string(what) + ": block " + std::to_string(rank) + " of a cluster of " +
                  std::to_string(self.grid().cluster),
              site);
  }
  if (self.has_returned(rank)) {
    self.fail(std::string(what) + ": block " + std::to_string(rank) + " of the cluster has returned", site);
  }
  return at + (self.shared(rank) - self.shared(self.rank())) / static_cast<int64_t>(sizeof(uint64_t));
}

ByteBarrier& Hopper::barrier(uint64_t* at, const char* what, const Site& site) {
  const auto found = barriers_.find(at);
  if (found == barriers_.end()) block().fail(std::string(what) + ": the barrier is not initialised", site);
  if (*at != kBarrierMark) block().fail(std::string(what) + ": the barrier was written over", site);
  return found->second;
}

void Hopper::init(uint64_t* at, int arrivals, const Site& site) {
  Block& self = block();
  self.require_shared(at, 8, 8, "barrier_init", site);
  if (arrivals < 1 || arrivals > kMostArrivals) {
    self.fail(
        "barrier_init: arrivals must be 1 to " + std::to_string(kMostArrivals) + ", got " + std::to_string(arrivals),
        site);
  }
  if (!barriers_.insert({at, {arrivals, arrivals, 0, 0, self.thread().index, false}}).second) {
    self.fail("barrier_init: the barrier is initialised already", site);
  }
  *at = kBarrierMark;
}

void Hopper::announce(int owner) {
  for (auto& [at, barrier] : barriers_) barrier.announced |= barrier.owner == owner;
}

void Hopper::arrive(ByteBarrier& on, uint32_t bytes, const char* what, const Site& site) {
  if (bytes > kMostBytes) block().fail(std::string(what) + ": " + std::to_string(bytes) + " bytes", site);
  if (!on.missing) {
    block().fail(std::string(what) + ": all " + std::to_string(on.arrivals) + " have arrived in this phase already",
                 site);
  }
  on.bytes += bytes;
  --on.missing;
  end_phase_if_done(on);
  block().maybe_yield(4);
}

void Hopper::copy(const EngineCopy& copy, const char* what, const Site& site) {
  if (!barrier(copy.barrier, what, site).announced) {
    block().fail(std::string(what) + ": no barrier_init_done after the barrier's barrier_init", site);
  }
  std::memset(copy.to, SharedMemory::kPoison, copy.bytes);
  copies_.push_back(copy);
  block().maybe_yield(4);
}

void arrive(uint64_t* at, uint32_t bytes, const char* what, const Site& site) {
  Hopper& of = hopper(what, site);
  block().require_shared(at, 8, 8, what, site);
  of.arrive(of.barrier(at, what, site), bytes, what, site);
}

void arrive_at(uint64_t* at, int rank, const Site& site) {
  Hopper& of = hopper("barrier_arrive_at", site);
  uint64_t* const there = of.barrier_of(rank, at, "barrier_arrive_at", site);
  of.arrive(of.barrier(there, "barrier_arrive_at", site), 0, "barrier_arrive_at", site);
}

void barrier_wait(uint64_t* at, uint32_t parity, const Site& site) {
  block().require_shared(at, 8, 8, "barrier_wait", site);
  struct Wait {
    const ByteBarrier* barrier;
    uint32_t parity;
  };
  const Wait wait = {&hopper("barrier_wait", site).barrier(at, "barrier_wait", site), parity};
  if (parity > 1) block().fail("barrier_wait: parity " + std::to_string(parity), site);
  block().wait_until(
      [](const void* argument) {
        const auto* const wait = static_cast<const Wait*>(argument);
        return (wait->barrier->phase & 1) != wait->parity;
      },
      &wait, "barrier_wait", site);
}

void require_map(const TensorMap* map, const char* what, const Site& site) {
  const Grid& grid = block().grid();
  const auto at = reinterpret_cast<uintptr_t>(map), params = reinterpret_cast<uintptr_t>(grid.params);
  if (at < params || at + sizeof(TensorMap) > params + static_cast<uintptr_t>(grid.params_bytes)) {
    block().fail(std::string(what) + ": the tensor map is not in the kernel's params", site);
  }
}

void copy_box(void* shared, const TensorMap* map, int32_t column, int32_t row, uint64_t* barrier, const Site& site) {
  const char* const what = "copy_box";
  Hopper& engine = hopper(what, site);
  require_map(map, what, site);
  const auto bytes = static_cast<uint32_t>(map->box_columns * map->element_bytes * map->box_rows);
  block().require_shared(shared, bytes, 1024, what, site);
  const Inside inside = columns_inside(*map, column);
  for (int64_t r = std::max<int64_t>(row, 0); r < std::min<int64_t>(int64_t(row) + map->box_rows, map->rows); ++r) {
    if (inside.first >= inside.end) break;
    block().require_global(map->base + r * map->row_stride_bytes + (column + inside.first) * map->element_bytes,
                           (inside.end - inside.first) * map->element_bytes, 1, false, what, site);
  }
  engine.copy({shared, map, nullptr, column, row, bytes, barrier}, what, site);
}

void copy_bulk(void* shared, const void* from, uint32_t bytes, uint64_t* barrier, const Site& site) {
  const char* const what = "copy_bulk";
  Hopper& engine = hopper(what, site);
  if (bytes == 0 || bytes % 16) block().fail("copy_bulk of " + std::to_string(bytes) + " bytes", site);
  block().require_shared(shared, bytes, 16, what, site);
  block().require_global(from, bytes, 16, false, what, site);
  engine.copy({shared, nullptr, from, 0, 0, bytes, barrier}, what, site);
}

void copy_bulk_to_cluster(void* shared, const void* from, uint32_t bytes, uint64_t* barrier, int blocks,
                          const Site& site) {
  const char* const what = "copy_bulk_to_cluster";
  Hopper& engine = hopper(what, site);
  Block& self = block();
  if (bytes == 0 || bytes % 16) self.fail("copy_bulk_to_cluster of " + std::to_string(bytes) + " bytes", site);
  self.require_shared(shared, bytes, 16, what, site);
  self.require_global(from, bytes, 16, false, what, site);
  for (int rank = 0; rank < self.grid().cluster; ++rank) {
    if (!(blocks >> rank & 1)) continue;
    char* const to = static_cast<char*>(shared) + (self.shared(rank) - self.shared(self.rank()));
    engine.copy({to, nullptr, from, 0, 0, bytes, engine.barrier_of(rank, barrier, what, site)}, what, site);
  }
}

}  // namespace resflow::cuda::emulator
