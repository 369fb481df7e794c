// The type of a GPU stream, for host code that includes no CUDA headers.
#pragma once

#if !defined(RESFLOW_EMULATED)
struct CUstream_st;
#endif

namespace resflow::cuda {

#if defined(RESFLOW_EMULATED)
using Stream = void*;
#else
using Stream = CUstream_st*;  // cudaStream_t
#endif

}  // namespace resflow::cuda
