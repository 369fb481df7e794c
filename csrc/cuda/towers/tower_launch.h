// Launches the tower kernels of one precision. Each precision has a translation unit: tower_<precision>.cu.
#pragma once

#include "cuda/towers/dispatch.h"
#include "cuda/towers/project.h"
#include "cuda/towers/tower.h"
#include "cuda/towers/tower_split.h"

namespace resflow::cuda {

template <Precision kPrecision>
struct TowerLaunch {
  static void tower(const TowerParams& params, const TowerChoice& choice, Stream stream);
  static void split(const SplitParams& params, Stream stream);
  // tile_memory is set if the operand does not fit into shared memory.
  static void project(const ProjectParams& params, int64_t blocks, Stream stream);
};

template <Precision kPrecision>
void TowerLaunch<kPrecision>::tower(const TowerParams& params, const TowerChoice& choice, Stream stream) {
  const auto run = [&]<int kVariant>() {
    constexpr TowerVariant kOwn = kTowerVariants[kVariant];
    launch<TowerKernel<kPrecision, kOwn.rows, kOwn.in_shared>>(params, choice.blocks, choice.shared_bytes, stream);
  };
  switch (choice.variant) {
    case 0:
      return run.template operator()<0>();
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    default:
      return run.template operator()<3>();
  }
}

template <Precision kPrecision>
void TowerLaunch<kPrecision>::split(const SplitParams& params, Stream stream) {
  launch<SplitKernel<kPrecision>>(params, params.jobs(), params.shared_bytes(), stream);
}

template <Precision kPrecision>
void TowerLaunch<kPrecision>::project(const ProjectParams& params, int64_t blocks, Stream stream) {
  if (params.tile_memory) {
    using Kernel = ProjectKernel<kPrecision, false>;
    launch<Kernel>(params, blocks, Kernel::shared_bytes(params), stream);
  } else {
    using Kernel = ProjectKernel<kPrecision, true>;
    launch<Kernel>(params, blocks, Kernel::shared_bytes(params), stream);
  }
}

// Calls run with the precision as a constant; one the GPU has (check_precision).
template <class Run>
auto in_gpu_precision(Precision precision, Run run) {
  switch (precision) {
    case Precision::bfloat16:
      return run.template operator()<Precision::bfloat16>();
    case Precision::float16:
      return run.template operator()<Precision::float16>();
    case Precision::tensorfloat32:
      return run.template operator()<Precision::tensorfloat32>();
    default:
      return run.template operator()<Precision::float32>();
  }
}

}  // namespace resflow::cuda
