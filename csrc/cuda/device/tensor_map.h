// Tensor maps: they describe a matrix in global memory to Hopper's copy engine, which copies boxes of it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/device/launch.h"

namespace resflow::cuda {

// Checks the engine's rules (CUDA driver API, cuTensorMapEncodeTiled) that apply to these maps.
inline void check_tensor_map(const void* base, int64_t columns, int64_t rows, int64_t row_stride_bytes,
                             int element_bytes, int box_columns, int box_rows) {
  const auto require = [](bool holds, const char* argument, const char* what, int64_t got) {
    if (holds) return;
    throw std::runtime_error(std::string("make_tensor_map: ") + argument + " must be " + what + ", got " +
                             std::to_string(got));
  };
  constexpr int64_t kMostElements = int64_t(1) << 32, kMostStride = int64_t(1) << 40;
  require(reinterpret_cast<uintptr_t>(base) % 16 == 0, "base", "aligned to 16 bytes",
          static_cast<int64_t>(reinterpret_cast<uintptr_t>(base)));
  require(element_bytes == 1 || element_bytes == 2 || element_bytes == 4, "element_bytes", "1, 2 or 4", element_bytes);
  require(columns > 0 && columns <= kMostElements, "columns", "1 to 2^32", columns);
  require(rows > 0 && rows <= kMostElements, "rows", "1 to 2^32", rows);
  require(row_stride_bytes % 16 == 0 && row_stride_bytes < kMostStride && row_stride_bytes >= columns * element_bytes,
          "row_stride_bytes", "a multiple of 16 below 2^40, of a row or more", row_stride_bytes);
  require(box_columns * element_bytes == 128, "box_columns", "128 bytes", box_columns);
  require(box_rows > 0 && box_rows <= 256, "box_rows", "1 to 256", box_rows);
}

#if defined(RESFLOW_EMULATED)

inline TensorMap encode_tensor_map(const void* base, int64_t columns, int64_t rows, int64_t row_stride_bytes,
                                   int element_bytes, int box_columns, int box_rows) {
  return {static_cast<const char*>(base), columns, rows, row_stride_bytes, element_bytes, box_columns, box_rows};
}

#else

// The driver's function, looked up by name so that nothing links to libcuda; it exists since CUDA 12.0.
inline auto tensor_map_encoder() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  require_success(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
                  "cudaGetDriverEntryPointByVersion");
  if (found != cudaDriverEntryPointSuccess || !entry) {
    throw std::runtime_error("resflow: the NVIDIA driver has no cuTensorMapEncodeTiled; CUDA 12.0 or newer is needed");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
}

inline TensorMap encode_tensor_map(const void* base, int64_t columns, int64_t rows, int64_t row_stride_bytes,
                                   int element_bytes, int box_columns, int box_rows) {
  static const auto encode = tensor_map_encoder();
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_stride_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUtensorMapDataType type = element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                                        : CU_TENSOR_MAP_DATA_TYPE_UINT32;
  TensorMap map;
  const CUresult status =
      encode(&map, type, 2, const_cast<void*>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(status)));
  }
  return map;
}

#endif

// The tensor map of a row-major matrix in device memory. copy_box copies boxes of box_rows rows of 128 bytes with the
// swizzle of describe_matrix (device/ptx_sm90.h); elements outside the matrix are zeros. Elements of 2 bytes, bfloat16
// and float16 alike, are moved as integers.
inline TensorMap make_tensor_map(const void* base, int64_t columns, int64_t rows, int64_t row_stride_bytes,
                                 int element_bytes, int box_columns, int box_rows) {
  check_tensor_map(base, columns, rows, row_stride_bytes, element_bytes, box_columns, box_rows);
  return encode_tensor_map(base, columns, rows, row_stride_bytes, element_bytes, box_columns, box_rows);
}

}  // namespace resflow::cuda
