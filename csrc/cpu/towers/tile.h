// One tile of a scoring call.
#pragma once

#include "cpu/towers/score.h"
#include "cpu/towers/tiling.h"

namespace resflow::cpu {

// Everything a call's threads share.
struct Call {
  const Model& model;
  const Candidates& candidates;
  const FusionWeights& weights;
  const Kernels& kernels;
  const float* starts;  // [requests or 1, tasks * first_padded()]

  int64_t start_floats() const { return model.plan.tasks * model.plan.first_padded(); }
};

// One thread's scores of one tile, [task][stride].
struct TileScores {
  const float* logits;
  const float* probs;
  const float* score;
  int64_t stride;
};

// The request that candidate `at` belongs to (requests without candidates are passed over).
int64_t request_at(const Candidates& candidates, int64_t at);

// `next` are the rows this thread is likely to score next. The scores stand until the thread's next call.
TileScores score_tile(const Call& call, Tiling::Rows own, Tiling::Rows next);

}  // namespace resflow::cpu
