// Products of rows with one side of the first layers, before candidates are scored.
#pragma once

#include "cpu/towers/score.h"
#include "cpu/threads/scratch.h"

namespace resflow::cpu {

// Where first-layer sums start, [requests or 1][tasks * first_padded()]: the biases, or each request's user row
// multiplied out once.
const float* make_starts(const Model& model, const Candidates& candidates, int64_t threads, Scratch& scratch);

}  // namespace resflow::cpu
