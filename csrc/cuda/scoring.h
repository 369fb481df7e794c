// Scoring on a GPU: what the torch ops call. Arguments have been checked; pointers are device memory, but those of
// Features::all, which are the host's.
#pragma once

#include "cuda/dispatch.h"
#include "cuda/tower_split.h"

namespace resflow::cuda {

struct Outputs {
  float* logits;  // [count, K], or null together with the next
  float* probs;   // [count, K]
  float* score;   // [count]
};

// One call, as the current device will run it: at most two kernels, the users' projections and the towers.
class Scoring {
 public:
  Scoring(const Model& model, const Candidates& candidates, const FusionWeights& weights);

  int64_t workspace_bytes() const { return parts_.bytes(); }
  // The kernel that scores.
  const char* kernel() const;
  void run(const Outputs& outputs, void* workspace, Stream stream) const;

 private:
  void choose_split(const FirstLayer& first, const Device& device);
  void choose_towers(int64_t columns, const Device& device);
  void project_users(TowerCall& call, char* workspace, Stream stream) const;
  void run_split(const TowerCall& call, char* workspace, Stream stream) const;
  void run_towers(const TowerCall& call, char* workspace, Stream stream) const;

  int64_t start_bytes() const;

  TowerCall call_{};
  bool has_user_ = false;
  bool splits_ = false;
  SplitParams split_{};
  ProjectChoice project_{};
  TowerChoice tower_{};

  WorkspaceParts parts_;
  int64_t features_ = 0, user_features_ = 0, starts_ = 0, projected_ = 0, counters_ = 0, hidden_ = 0, tiles_ = 0;
};

// Items [count, item_columns], the last columns of input rows, times all first layers: out [count][tasks *
// first_padded()] in float32.
int64_t project_items_workspace_bytes(const Plan& plan, int64_t count, int64_t item_columns);
void project_items(const Model& model, const Rows& item, int64_t count, int64_t item_columns, float* out,
                   void* workspace, Stream stream);

}  // namespace resflow::cuda
