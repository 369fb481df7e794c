// Functions that the host and GPU kernels share. Always inlined: a copy that one instruction set's translation unit
// compiled must not be the one the linker keeps for all.
#pragma once

#if defined(__CUDACC__)
#define RESFLOW_BOTH __host__ __device__ __forceinline__
#else
#define RESFLOW_BOTH inline __attribute__((always_inline))
#endif
