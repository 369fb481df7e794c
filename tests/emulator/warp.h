// Operations that a warp's 32 lanes carry out together.
#pragma once

#include <cstdint>

#include "emulator/block.h"

namespace resflow::cuda::emulator {

// The value that lane `from` brings.
uint64_t exchange(uint64_t value, int from, const char* what, const Site& site);
uint32_t ballot(bool holds, const Site& site);
void sync_warp(const Site& site);
void load_matrices(uint32_t* out, const void* row, const Site& site);

}  // namespace resflow::cuda::emulator
