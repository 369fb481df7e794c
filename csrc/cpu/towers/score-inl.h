// From a tile of candidates to their scores.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// Computes the logits, probabilities and scores of a tile's candidates.
template <Precision kPrecision>
void score_tile(const Tile& tile) {
  if (tile.plan->program) {
    run_program<kPrecision>(tile);
    program_logits(tile);
  } else {
    run_towers<kPrecision>(tile);
  }
  for (int32_t k = 0; k < tile.plan->tasks; ++k) {
    for (int64_t r = tile.rows; r < tile.stride; ++r) tile.logits[k * tile.stride + r] = 0.0f;
  }
  join_parents(tile);
  fuse(tile);
}

}  // namespace resflow::cpu::RESFLOW_TARGET
