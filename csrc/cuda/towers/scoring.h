// Scoring on a GPU: what the torch ops call. Arguments have been checked; pointers are device memory, but those of
// Features::all, which are the host's.
#pragma once

#include <memory>

#include "core/candidates.h"
#include "cuda/device/stream.h"

namespace resflow::cuda {

struct Outputs {
  float* logits;  // [count, K], or null together with the next
  float* probs;   // [count, K]
  float* score;   // [count]
};

// One call, as the current device will run it: at most two kernels, the users' projections and the towers (and before
// them, in the feature form, one that brings the tables' addresses to the device).
class Scoring {
 public:
  Scoring(const Model& model, const Candidates& candidates, const FusionWeights& weights);
  ~Scoring();

  int64_t workspace_bytes() const;
  // The kernel that scores.
  const char* kernel() const;
  void run(const Outputs& outputs, void* workspace, Stream stream) const;

 private:
  class Launches;
  std::unique_ptr<const Launches> launches_;
};

// Items [count, item_columns], the last columns of input rows, times all first layers: out [count][tasks *
// first_padded()] in float32.
int64_t project_items_workspace_bytes(const Plan& plan, int64_t count, int64_t item_columns);
void project_items(const Model& model, const Rows& item, int64_t count, int64_t item_columns, float* out,
                   void* workspace, Stream stream);

}  // namespace resflow::cuda
