#define RESFLOW_TARGET avx2
#define RESFLOW_KERNELS kAvx2Kernels

#include "cpu/simd/simd_avx2.h"

#include "cpu/simd/kernels-inl.h"
