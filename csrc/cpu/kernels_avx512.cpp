#define RESFLOW_TARGET avx512
#define RESFLOW_KERNELS kAvx512Kernels

#include "cpu/kernels-inl.h"
#include "cpu/simd_avx512.h"
