#define RESFLOW_TARGET avx512
#define RESFLOW_KERNELS kAvx512Kernels

#include "cpu/simd_avx512.h"

#include "cpu/kernels-inl.h"
