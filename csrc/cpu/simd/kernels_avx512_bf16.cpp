// AVX-512 with the dot products of AVX512-BF16 and AVX512-VNNI.
#define RESFLOW_TARGET avx512_bf16
#define RESFLOW_KERNELS kAvx512Bf16Kernels

#include "cpu/simd/simd_avx512.h"

#include "cpu/simd/kernels-inl.h"
