// Scores candidates by a tile program: what towers_scores does for those plans. program_outputs is in towers.h.
#pragma once

#include "core/candidates.h"
#include "cuda/device/queue.h"

namespace resflow::cuda {

void program_scores(const ScoringCall& call, const ScoresOut& out, Queue& queue);

}  // namespace resflow::cuda
