// The tower kernels of one precision, as the host launches them. A translation unit each: tower_<precision>.cu.
#pragma once

#include <iterator>
#include <utility>

#include "cuda/towers/dispatch.h"
#include "cuda/towers/project.h"
#include "cuda/towers/tower.h"
#include "cuda/towers/tower_split.h"

namespace resflow::cuda {

template <Precision kPrecision>
struct TowerLaunch {
  static void tower(const TowerParams& params, const TowerChoice& choice, Stream stream);
  static void split(const SplitParams& params, Stream stream);
  // tile_memory is set where the operand does not fit into shared memory.
  static void project(const ProjectParams& params, int64_t blocks, Stream stream);
};

template <Precision kPrecision>
void TowerLaunch<kPrecision>::tower(const TowerParams& params, const TowerChoice& choice, Stream stream) {
  const auto run = [&]<int kVariant>() {
    constexpr TowerVariant kOwn = kTowerVariants[kVariant];
    launch<TowerKernel<kPrecision, kOwn.rows, kOwn.in_shared>>(params, choice.blocks, choice.shared_bytes, stream);
  };
  [&]<int... kVariants>(std::integer_sequence<int, kVariants...>) {
    ((choice.variant == kVariants ? run.template operator()<kVariants>() : void()), ...);
  }(std::make_integer_sequence<int, static_cast<int>(std::size(kTowerVariants))>{});
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
    case Precision::float32:
    case Precision::int8:  // refused
    case Precision::count:
      break;
  }
  return run.template operator()<Precision::float32>();
}

}  // namespace resflow::cuda
