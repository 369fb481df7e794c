// The operations of target.h that only Hopper has, on a CPU: the same names as device/ptx_sm90.h, checked.
#pragma once

#include <cstdint>

#include "emulator/device.h"
#include "emulator/hopper.h"

namespace resflow::cuda {

// Barriers in shared memory, 8 bytes each -------------------------------------------------------------------------

inline void barrier_init(uint64_t* barrier, int arrivals, Site site = Site::current()) {
  emulator::hopper("barrier_init", site).init(barrier, arrivals, site);
}
inline void barrier_init_done(Site site = Site::current()) {
  emulator::hopper("barrier_init_done", site).announce(emulator::block().thread().index);
}
inline void barrier_arrive(uint64_t* barrier, Site site = Site::current()) {
  emulator::arrive(barrier, 0, "barrier_arrive", site);
}
inline void barrier_expect(uint64_t* barrier, uint32_t bytes, Site site = Site::current()) {
  emulator::arrive(barrier, bytes, "barrier_expect", site);
}
inline void barrier_arrive_at(uint64_t* barrier, int rank, Site site = Site::current()) {
  emulator::arrive_at(barrier, rank, site);
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity, Site site = Site::current()) {
  emulator::barrier_wait(barrier, parity, site);
}

// The copy engine --------------------------------------------------------------------------------------------------

inline void copy_box(void* shared, const TensorMap* map, int32_t column, int32_t row, uint64_t* barrier,
                     Site site = Site::current()) {
  emulator::copy_box(shared, map, column, row, barrier, site);
}
inline void prefetch_map(const TensorMap* map, Site site = Site::current()) {
  emulator::hopper("prefetch_map", site);
  emulator::require_map(map, "prefetch_map", site);
}
inline void copy_bulk(void* shared, const void* from, uint32_t bytes, uint64_t* barrier, Site site = Site::current()) {
  emulator::copy_bulk(shared, from, bytes, barrier, site);
}
inline void copy_bulk_to_cluster(void* shared, const void* from, uint32_t bytes, uint64_t* barrier, int blocks,
                                 Site site = Site::current()) {
  emulator::copy_bulk_to_cluster(shared, from, bytes, barrier, blocks, site);
}
// Not checked: a kernel that lacks it runs here.
inline void fence_async(Site site = Site::current()) { emulator::hopper("fence_async", site); }

// Clusters ---------------------------------------------------------------------------------------------------------

inline int cluster_rank() { return emulator::block().rank(); }
inline void sync_cluster(Site site = Site::current()) { emulator::block().sync_cluster(site); }

// Registers --------------------------------------------------------------------------------------------------------

namespace emulator {

template <int kRegisters>
void change_registers(const char* what, const Site& site) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  hopper(what, site);
  block().meet(block().warp(), what, site, nullptr, [](void* const*) {});
}

}  // namespace emulator

template <int kRegisters>
void take_registers(Site site = Site::current()) {
  emulator::change_registers<kRegisters>("take_registers", site);
}
template <int kRegisters>
void give_registers(Site site = Site::current()) {
  emulator::change_registers<kRegisters>("give_registers", site);
}

// Products of a warpgroup ------------------------------------------------------------------------------------------

inline uint64_t describe_matrix(const void* matrix, Site site = Site::current()) {
  emulator::hopper("describe_matrix", site);
  // The fields and the numbers are those of device/ptx_sm90.h.
  const uint64_t address = (shared_address(matrix, site) & 0x3ffff) >> 4;
  return address | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

inline void products_begin(Site site = Site::current()) { emulator::products_begin(site); }
inline void products_commit(Site site = Site::current()) { emulator::products_commit(site); }
template <int kLeft>
void products_wait(Site site = Site::current()) {
  emulator::products_wait(kLeft, site);
}
inline void touch(float&) {}

template <class Type, int kColumns>
struct WarpgroupProduct {
  static_assert(kColumns == 64 || kColumns == 128);
  static_assert(std::is_same_v<Type, Bfloat16Product> || std::is_same_v<Type, Float16Product>);

  static void multiply(float (&sums)[kColumns / 2], uint64_t a, uint64_t b, Site site = Site::current()) {
    emulator::multiply({"WarpgroupProduct", Type::Words::unpack, kColumns, sums, nullptr, a, b, site});
  }
  static void multiply(float (&sums)[kColumns / 2], const uint32_t (&a)[4], uint64_t b, Site site = Site::current()) {
    emulator::multiply({"WarpgroupProduct of registers", Type::Words::unpack, kColumns, sums, a, 0, b, site});
  }
};

}  // namespace resflow::cuda
