// Multiplies rows by one side of the first layers, before candidates are scored.
#pragma once

#include "core/candidates.h"
#include "cpu/threads/scratch.h"

namespace resflow::cpu {

// Initial values of first-layer sums, [requests or 1][tasks * first_padded()]: the biases, or each request's projected
// user row.
const float* project_users(const ScoringCall& call, int64_t threads, Scratch& scratch);

}  // namespace resflow::cpu
