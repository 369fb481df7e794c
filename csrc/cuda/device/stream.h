// What the host's own code needs to know of a GPU: the type of its streams.
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
