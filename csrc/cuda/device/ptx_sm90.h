// The operations of target.h that only Hopper (sm_90a) has: barriers that count bytes, the copy engine (TMA), and
// matrix products by a warpgroup of 128 threads. On other targets they compile to a trap.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/device/ptx.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define RESFLOW_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define RESFLOW_HOPPER_ASM(...) __trap()
#endif

namespace resflow::cuda {

// A tensor map of the copy engine; the host makes it (tensor_map.h) and passes it by value in the kernel's Params.
using TensorMap = CUtensorMap;

// Barriers in shared memory, 8 bytes each -------------------------------------------------------------------------

// A phase ends when `arrivals` threads have arrived and all bytes expected in it have landed.
RESFLOW_DEVICE void barrier_init(uint64_t* barrier, int arrivals) {
  RESFLOW_HOPPER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                     "r"(arrivals) : "memory");
}
// Makes new barriers visible to the copy engine: called by the initialising thread after barrier_init, before
// sync_block.
RESFLOW_DEVICE void barrier_init_done() { RESFLOW_HOPPER_ASM("fence.mbarrier_init.release.cluster;" :: : "memory"); }
RESFLOW_DEVICE void barrier_arrive(uint64_t* barrier) {
  RESFLOW_HOPPER_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and expects `bytes` more bytes in this phase.
RESFLOW_DEVICE void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  RESFLOW_HOPPER_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                     "r"(bytes) : "memory");
}
// Arrives at the barrier with the same offset in block `rank` of the cluster. It orders reads by products before
// writes by the copy engine only: ordinary stores are not released to the other block (.release.cluster would be a
// fence of the whole GPU, which waits for all of the warp's stores).
RESFLOW_DEVICE void barrier_arrive_at(uint64_t* barrier, int rank) {
  RESFLOW_HOPPER_ASM(
      "{\n .reg .b32 there;\n mapa.shared::cluster.u32 there, %0, %1;\n "
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n }" ::"r"(shared_address(barrier)),
      "r"(rank) : "memory");
}
// Waits until the phase of this parity has ended (a new barrier is in phase 0, so a wait for parity 1 returns at once).
RESFLOW_DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
  RESFLOW_HOPPER_ASM(
      "{\n .reg .pred done;\n WAIT:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @done bra DONE;\n "
      "bra WAIT;\n DONE:\n }" ::"r"(shared_address(barrier)),
      "r"(parity) : "memory");
}

// The copy engine --------------------------------------------------------------------------------------------------

// Copies the box of `map` whose first element is (column, row) into shared memory (128-byte aligned, 1024 with the
// map's swizzle); elements outside the tensor become zeros. The barrier counts all bytes of the box. One thread calls
// it.
RESFLOW_DEVICE void copy_box(void* shared, const TensorMap* map, int32_t column, int32_t row, uint64_t* barrier) {
  RESFLOW_HOPPER_ASM(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(shared)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)) : "memory");
}
RESFLOW_DEVICE void prefetch_map(const TensorMap* map) {
  RESFLOW_HOPPER_ASM("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Copies `bytes` contiguous bytes (a multiple of 16), both addresses aligned to 16.
RESFLOW_DEVICE void copy_bulk(void* shared, const void* from, uint32_t bytes, uint64_t* barrier) {
  RESFLOW_HOPPER_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared_address(shared)),
                     "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}

// Copies to the same offset in every block of the cluster whose bit is set in `blocks`; in each, the barrier at the
// same offset counts the bytes.
RESFLOW_DEVICE void copy_bulk_to_cluster(void* shared, const void* from, uint32_t bytes, uint64_t* barrier,
                                         int blocks) {
  RESFLOW_HOPPER_ASM(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared_address(shared)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "h"(static_cast<uint16_t>(blocks)) : "memory");
}

// This thread's ordinary stores to shared memory become visible to the copy engine and the tensor cores after the next
// barrier.
RESFLOW_DEVICE void fence_async() { RESFLOW_HOPPER_ASM("fence.proxy.async.shared::cta;" :: : "memory"); }

// Clusters ---------------------------------------------------------------------------------------------------------
//
// A kernel with a `static constexpr int kCluster` runs in clusters of kCluster consecutive blocks.

// The block's index in its cluster.
RESFLOW_DEVICE int cluster_rank() {
  int rank = 0;
  RESFLOW_HOPPER_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Synchronises all threads of the cluster. A block must not return while others copy to it or arrive at its barriers.
RESFLOW_DEVICE void sync_cluster() {
  RESFLOW_HOPPER_ASM("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;" :: : "memory");
}

// Registers --------------------------------------------------------------------------------------------------------

template <int kRegisters>
RESFLOW_DEVICE void take_registers() {
  RESFLOW_HOPPER_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
RESFLOW_DEVICE void give_registers() {
  RESFLOW_HOPPER_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Products of a warpgroup ------------------------------------------------------------------------------------------
//
// A matrix in shared memory is described by 64 bits. The matrices here have rows of 128 bytes (64 16-bit values of
// depth) in groups of 8 rows (1024 bytes, and aligned to 1024), swizzled: 16-byte piece p of row r is stored as piece
// p ^ (r % 8). `matrix` may be advanced along the depth, within a row, in steps of 32 bytes.

RESFLOW_DEVICE uint64_t describe_matrix(const void* matrix) {
  const uint64_t address = (shared_address(matrix) & 0x3ffff) >> 4;
  const uint64_t group_bytes = 1024 >> 4;
  const uint64_t swizzle_128_bytes = 1;
  return address | uint64_t(1) << 16 | group_bytes << 32 | swizzle_128_bytes << 62;
}

// Orders register writes (sums, or a in registers) before the products that read them: call it before each batch.
RESFLOW_DEVICE void products_begin() { RESFLOW_HOPPER_ASM("wgmma.fence.sync.aligned;" :: : "memory"); }
RESFLOW_DEVICE void products_commit() { RESFLOW_HOPPER_ASM("wgmma.commit_group.sync.aligned;" :: : "memory"); }
// Waits until all but the last kLeft batches are done; until then, their sums and operands must not be touched.
template <int kLeft>
RESFLOW_DEVICE void products_wait() {
  RESFLOW_HOPPER_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// Tells the compiler that a register may have changed, so that it neither moves it across a batch nor caches its value.
RESFLOW_DEVICE void touch(float& value) { asm volatile("" : "+f"(value)::"memory"); }

}  // namespace resflow::cuda

#include "cuda/device/products_sm90.h"
