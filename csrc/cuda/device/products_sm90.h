// wgmma instructions by number of columns and type. An asm statement names every register, so macros spell them out.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.h"

namespace resflow::cuda {

#define RESFLOW_SUMS_64                                                                                               \
  "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]),            \
      "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]),    \
      "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), \
      "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), \
      "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31])
#define RESFLOW_NAMES_64                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %" \
  "21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

#define RESFLOW_SUMS_128                                                                                              \
  "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]),            \
      "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]),    \
      "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), \
      "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), \
      "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), \
      "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]), "+f"(sums[40]), "+f"(sums[41]), \
      "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]), "+f"(sums[48]), \
      "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]), \
      "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), \
      "+f"(sums[63])
#define RESFLOW_NAMES_128                                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %" \
  "21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %4" \
  "0, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59" \
  ", %60, %61, %62, %63"

// sums[kColumns / 2] += a [64 rows] x b [kColumns columns] over 16 values of depth. The sums are laid out as adjacent
// Bfloat16Product tiles: for column block j (8 columns), a lane of the warpgroup's warp w holds in sums[4 j ...] rows
// 16 w + lane / 4 and 16 w + lane / 4 + 8.
template <class Type, int kColumns>
struct WarpgroupProduct;

// a and b as descriptors (describe_matrix), or a in registers with the layout of Bfloat16Product.
#define RESFLOW_PRODUCT(Type, name, columns, A, B, C)                                                                \
  template <>                                                                                                        \
  struct WarpgroupProduct<Type, columns> {                                                                           \
    static RESFLOW_DEVICE void multiply(float (&sums)[columns / 2], uint64_t a, uint64_t b) {                        \
      RESFLOW_HOPPER_ASM("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name                       \
                         " {" RESFLOW_NAMES_##columns "}, %" #A ", %" #B                                             \
                                                      ", 1, 1, 1, 0, 0;" : RESFLOW_SUMS_##columns : "l"(a),          \
                         "l"(b));                                                                                    \
    }                                                                                                                \
    static RESFLOW_DEVICE void multiply(float (&sums)[columns / 2], const uint32_t (&a)[4], uint64_t b) {            \
      RESFLOW_HOPPER_ASM("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name                       \
                         " {" RESFLOW_NAMES_##columns "}, {" C ", 1, 1, 1, 0;" : RESFLOW_SUMS_##columns : "r"(a[0]), \
                         "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                   \
    }                                                                                                                \
  };

RESFLOW_PRODUCT(Bfloat16Product, "bf16", 64, 32, 33, "%32, %33, %34, %35}, %36")
RESFLOW_PRODUCT(Float16Product, "f16", 64, 32, 33, "%32, %33, %34, %35}, %36")
RESFLOW_PRODUCT(Bfloat16Product, "bf16", 128, 64, 65, "%64, %65, %66, %67}, %68")
RESFLOW_PRODUCT(Float16Product, "f16", 128, 64, 65, "%64, %65, %66, %67}, %68")

#undef RESFLOW_PRODUCT
#undef RESFLOW_SUMS_64
#undef RESFLOW_NAMES_64
#undef RESFLOW_SUMS_128
#undef RESFLOW_NAMES_128

}  // namespace resflow::cuda
