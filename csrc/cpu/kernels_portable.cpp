#define RESFLOW_TARGET portable
#define RESFLOW_KERNELS kPortableKernels

#include "cpu/kernels-inl.h"
#include "cpu/simd_portable.h"
