// Which kernels this machine runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/simd/kernels.h"

namespace resflow::cpu {

// The kernels in use: the best this machine can run, or the one RESFLOW_ISA names. Decided once.
// Throws InvalidInput if RESFLOW_ISA names none this machine can run.
const Kernels& kernels();

// All compiled in, best first, and those of them this machine can run.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();

}  // namespace resflow::cpu
