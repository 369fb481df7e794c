// Launches the tower kernels of one precision. Each precision has a translation unit: tower_<precision>.cu.
#pragma once

#include <utility>

#include "cuda/towers/dispatch.h"
#include "cuda/towers/project.h"
#include "cuda/towers/tower.h"
#include "cuda/towers/tower_split.h"

namespace resflow::cuda {

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

}  // namespace resflow::cuda
