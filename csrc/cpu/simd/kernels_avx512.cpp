#define RESFLOW_TARGET avx512
#define RESFLOW_KERNELS kAvx512Kernels

#include "cpu/simd/simd_avx512.h"

#include "cpu/simd/kernels-inl.h"
