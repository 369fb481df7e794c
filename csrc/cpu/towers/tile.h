// One tile of a scoring call.
#pragma once

#include "cpu/simd/isa.h"
#include "cpu/towers/project.h"
#include "cpu/towers/tiling.h"

namespace resflow::cpu {

// Everything a call's threads share: the users' rows are multiplied out into `scratch`.
struct PreparedCall {
  const ScoringCall& call;
  const Kernels& kernels;
  const float* accum_init;  // [requests or 1, tasks * first_padded()]

  PreparedCall(const ScoringCall& call, int64_t threads, Scratch& scratch)
      : call(call), kernels(cpu::kernels()), accum_init(project_users(call, threads, scratch)) {}
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
TileScores score_tile(const PreparedCall& prepared, Tiling::Rows own, Tiling::Rows next);

}  // namespace resflow::cpu
