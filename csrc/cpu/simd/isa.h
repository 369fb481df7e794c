// Chooses the kernels that this machine runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/simd/kernels.h"

namespace resflow::cpu {

// The kernels in use: the best that this machine supports, or those named by RESFLOW_ISA; chosen once.
// Throws InvalidInput if RESFLOW_ISA names no kernels that this machine supports.
const Kernels& kernels();

// The names of all compiled kernels, best first, and of those that this machine supports.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();

}  // namespace resflow::cpu
