#define RESFLOW_TARGET neon
#define RESFLOW_KERNELS kNeonKernels

#include "cpu/simd/simd_neon.h"

#include "cpu/simd/kernels-inl.h"
