#define RESFLOW_TARGET avx2
#define RESFLOW_KERNELS kAvx2Kernels

#include "cpu/simd_avx2.h"

#include "cpu/kernels-inl.h"
