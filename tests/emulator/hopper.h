// What a block of a Hopper GPU has besides its threads: barriers that count bytes, the copy engine, and products that
// a warp has issued but not waited for.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "emulator/block.h"
#include "emulator/tensor_map.h"

namespace resflow::cuda::emulator {

struct ByteBarrier {
  int arrivals, missing;
  // Expected in this phase and not landed; below zero while what has landed is not expected yet.
  int64_t bytes;
  uint32_t phase;
  int owner;       // the thread that initialised it
  bool announced;  // to the copy engine
};

struct EngineCopy {
  void* to;
  const TensorMap* map;  // null: bytes side by side
  const void* from;
  int32_t column, row;
  uint32_t bytes;
  uint64_t* barrier;
};

// Of a warp: 16 rows of a warpgroup's 64.
struct PendingProduct {
  void (*unpack)(uint32_t word, float* values);
  int columns;
  size_t sums;  // which
  bool a_in_registers;
  std::array<std::array<uint32_t, 4>, kWarp> a_registers;
  const char *a, *b;  // a: row 0 of the warpgroup's
};

struct PendingSums {
  int columns;
  std::array<float*, kWarp> registers;
  std::vector<float> values;  // [16][columns]
  int64_t last_batch;         // in which they are added to
};

struct WarpProducts {
  bool begun = false;
  int64_t batches = 0, batches_done = 0;                     // committed ones
  std::vector<std::pair<int64_t, PendingProduct>> products;  // with their batch, oldest first
  std::vector<PendingSums> sums;
};

class Hopper : public Background {
 public:
  bool step(Random& random) override;

  // The barrier there; `what` for the error if there is none.
  ByteBarrier& barrier(uint64_t* at, const char* what, const Site& site);
  // The barrier at the same place of another block of the cluster.
  uint64_t* barrier_of(int rank, uint64_t* at, const char* what, const Site& site);
  void init(uint64_t* at, int arrivals, const Site& site);
  void announce(int owner);
  void arrive(ByteBarrier& on, uint32_t bytes, const char* what, const Site& site);
  void copy(const EngineCopy& copy, const char* what, const Site& site);
  WarpProducts& products(int warp) { return products_[warp]; }

 private:
  void end_phase_if_done(ByteBarrier& barrier);

  std::unordered_map<uint64_t*, ByteBarrier> barriers_;
  std::vector<EngineCopy> copies_;
  std::array<WarpProducts, kMostWarps> products_;
};

// Of the running block; `what` needs it.
Hopper& hopper(const char* what, const Site& site);

void arrive(uint64_t* barrier, uint32_t bytes, const char* what, const Site& site);
void arrive_at(uint64_t* barrier, int rank, const Site& site);
void barrier_wait(uint64_t* barrier, uint32_t parity, const Site& site);
void require_map(const TensorMap* map, const char* what, const Site& site);
void copy_box(void* shared, const TensorMap* map, int32_t column, int32_t row, uint64_t* barrier, const Site& site);
void copy_bulk(void* shared, const void* from, uint32_t bytes, uint64_t* barrier, const Site& site);
void copy_bulk_to_cluster(void* shared, const void* from, uint32_t bytes, uint64_t* barrier, int blocks,
                          const Site& site);

void products_begin(const Site& site);
void products_commit(const Site& site);
void products_wait(int left, const Site& site);

// One thread's part in a product of its warpgroup.
struct WarpgroupOperands {
  const char* what;
  void (*unpack)(uint32_t word, float* values);
  int columns;
  float* sums;
  const uint32_t* a_registers;  // or null, and then
  uint64_t a;
  uint64_t b;
  Site site;
};
void multiply(WarpgroupOperands operands);

}  // namespace resflow::cuda::emulator
