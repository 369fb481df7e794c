#define RESFLOW_TARGET portable
#define RESFLOW_KERNELS kPortableKernels

#include "cpu/simd/simd_portable.h"

#include "cpu/simd/kernels-inl.h"
