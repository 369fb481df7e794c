// NEON with the dot and matrix products of BF16 and I8MM, which Armv8.6 has and some older processors too.
#define RESFLOW_TARGET neon_bf16
#define RESFLOW_KERNELS kNeonBf16Kernels

#include "cpu/simd/simd_neon.h"

#include "cpu/simd/kernels-inl.h"
