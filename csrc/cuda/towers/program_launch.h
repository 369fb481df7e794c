// Launches the program kernels of one precision. Each precision has a translation unit: program_<precision>.cu.
#pragma once

#include "cuda/towers/dispatch.h"
#include "cuda/towers/program.h"

namespace resflow::cuda {

template <Precision kPrecision>
struct ProgramLaunch {
  static const LaunchOf<ProgramParams> kProgram[std::size(kTowerVariants)];
};

template <Precision kPrecision, int kVariant>
using ProgramOfVariant = ProgramKernel<kPrecision, kTowerVariants[kVariant].rows, kTowerVariants[kVariant].in_shared>;

static_assert(std::size(kTowerVariants) == 4);
template <Precision kPrecision>
const LaunchOf<ProgramParams> ProgramLaunch<kPrecision>::kProgram[std::size(kTowerVariants)] = {
    launch<ProgramOfVariant<kPrecision, 0>>, launch<ProgramOfVariant<kPrecision, 1>>,
    launch<ProgramOfVariant<kPrecision, 2>>, launch<ProgramOfVariant<kPrecision, 3>>};

}  // namespace resflow::cuda
