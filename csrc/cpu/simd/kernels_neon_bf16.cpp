// NEON with the dot and matrix products of BF16 and I8MM, which Armv8.6 has and some older processors too.
#define RESFLOW_TARGET neon_bf16
#define RESFLOW_KERNELS kNeonBf16Kernels

#include "cpu/simd/simd_neon.h"

#if !defined(RESFLOW_MATRIX_PRODUCTS)
#error "needs the compiler's options for BF16 and I8MM"
#endif

#include "cpu/simd/kernels-inl.h"
