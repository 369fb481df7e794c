// The Hopper kernel of tower_sm90.h, for the calls that it covers.
#pragma once

#include "cuda/device/launch.h"
#include "cuda/towers/call.h"

namespace resflow::cuda {

// Whether the kernel computes this call on this device; where it does not, the general one does.
bool covered_by_tower_sm90(const Plan& plan, const Candidates& candidates, const Device& device);

// A covered call's logits, probabilities and scores.
void launch_tower_sm90(const TowerCall& call, const Device& device, Stream stream);

}  // namespace resflow::cuda
