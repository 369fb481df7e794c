// Products of rows with one side of the first layers, before candidates are scored.
#pragma once

#include "core/candidates.h"
#include "cpu/threads/scratch.h"

namespace resflow::cpu {

// What first-layer sums begin with, [requests or 1][tasks * first_padded()]: the biases, or each request's user row
// multiplied out once.
const float* project_users(const ScoringCall& call, int64_t threads, Scratch& scratch);

}  // namespace resflow::cpu
