// Scores one tile of a scoring call.
#pragma once

#include "cpu/simd/isa.h"
#include "cpu/towers/project.h"
#include "cpu/towers/tiling.h"

namespace resflow::cpu {

// The data that a call's threads share; users' floats are computed into `scratch`.
struct PreparedCall {
  const ScoringCall& call;
  const Kernels& kernels;
  const float* users;   // [requests or 1][user_floats], see project_users
  int64_t user_floats;  // 0 without users

  PreparedCall(const ScoringCall& call, int64_t threads, Scratch& scratch)
      : call(call),
        kernels(cpu::kernels()),
        users(project_users(call, threads, scratch)),
        user_floats(call.candidates.user.exists() ? user_floats_of(call) : 0) {}
};

// One thread's scores of one tile, [task][stride].
struct TileScores {
  const float* logits;
  const float* probs;
  const float* score;
  int64_t stride;
};

// The request that contains the candidate (requests without candidates are skipped).
int64_t request_at(const Candidates& candidates, int64_t candidate);

// Scores the rows `current`; `next` are the rows that this thread is likely to score next, which are prefetched. The
// scores are valid until the thread's next call.
TileScores score_tile(const PreparedCall& prepared, Tiling::Rows current, Tiling::Rows next);

// Computes a tile program's outputs of the rows `current`: to out [rows][output_columns].
void output_tile(const PreparedCall& prepared, Tiling::Rows current, Tiling::Rows next, float* out);

}  // namespace resflow::cpu
