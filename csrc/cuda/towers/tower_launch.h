// Launches the tower kernels of one precision. Each precision has a translation unit: tower_<precision>.cu.
#pragma once

#include <iterator>
#include <utility>

#include "cuda/towers/dispatch.h"
#include "cuda/towers/project.h"
#include "cuda/towers/tower.h"
#include "cuda/towers/tower_split.h"

namespace resflow::cuda {

template <class Params>
using LaunchOf = void (*)(const Params&, int64_t blocks, int64_t shared_bytes, Stream);

template <Precision kPrecision>
struct TowerLaunch {
  static const LaunchOf<TowerParams> kTower[4];      // indexed like kTowerVariants
  static const LaunchOf<ProjectParams> kProject[2];  // indexed by whether the operand is in shared memory
  static const LaunchOf<SplitParams> kSplit;
};

template <Precision kPrecision, int kVariant>
using TowerOfVariant = TowerKernel<kPrecision, kTowerVariants[kVariant].rows, kTowerVariants[kVariant].in_shared>;

static_assert(std::size(kTowerVariants) == 4);
template <Precision kPrecision>
const LaunchOf<TowerParams> TowerLaunch<kPrecision>::kTower[4] = {
    launch<TowerOfVariant<kPrecision, 0>>, launch<TowerOfVariant<kPrecision, 1>>, launch<TowerOfVariant<kPrecision, 2>>,
    launch<TowerOfVariant<kPrecision, 3>>};

template <Precision kPrecision>
const LaunchOf<ProjectParams> TowerLaunch<kPrecision>::kProject[2] = {launch<ProjectKernel<kPrecision, false>>,
                                                                      launch<ProjectKernel<kPrecision, true>>};

template <Precision kPrecision>
const LaunchOf<SplitParams> TowerLaunch<kPrecision>::kSplit = launch<SplitKernel<kPrecision>>;

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
    case Precision::float32:
    case Precision::int8:  // refused
    case Precision::count:
      break;
  }
  return run.template operator()<Precision::float32>();
}

}  // namespace resflow::cuda
