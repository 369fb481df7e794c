// The operations of a GPU thread that C++ lacks and that kernels are written in. One source, two compilers:
//
//   nvcc  device/ptx.h and device/ptx_sm90.h, where each operation is one PTX instruction or CUDA intrinsic;
//   g++   tests/emulator/device*.h (RESFLOW_EMULATED), where a thread is a fiber and the operations of a warp are
//         computed from PTX's documented fragment layouts, so that kernels are tested where there is no GPU.
//
// A kernel is a struct:
//
//   struct Kernel {
//     struct Params { ... };                      // plain data, passed by value
//     static constexpr int kThreads, kMinBlocks;  // threads per block; least blocks per SM (bounds the registers)
//     static constexpr const char* kName;         // for error messages
//     static RESFLOW_DEVICE void run(const Params& params, char* shared);
//   };
//   launch<Kernel>(params, grid, shared_bytes, stream);   // launch.h
//
// Rules that let the emulator find mistakes: global memory is accessed only through the operations below; shared
// memory is `shared` (aligned to 1024 bytes) and pointers into it; there are no static or extern shared variables.
#pragma once

#include <cstdint>

#include "core/both.h"

#if defined(RESFLOW_EMULATED)
#include "emulator/device.h"
#include "emulator/device_sm90.h"
#elif defined(__CUDACC__)
#include "cuda/device/ptx.h"
#include "cuda/device/ptx_sm90.h"
#else
#error "csrc/cuda is compiled by nvcc, or by a C++ compiler with RESFLOW_EMULATED"
#endif
