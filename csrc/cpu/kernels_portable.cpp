#define RESFLOW_TARGET portable
#define RESFLOW_KERNELS kPortableKernels

#include "cpu/simd_portable.h"

#include "cpu/kernels-inl.h"
