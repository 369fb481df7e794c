// Launches the Hopper kernel of tower_sm90.h for the calls that it covers.
#pragma once

#include "cuda/device/launch.h"
#include "cuda/towers/call.h"

namespace resflow::cuda {

// Whether the kernel supports this call on this device; otherwise the general kernel computes it.
bool covered_by_tower_sm90(const Plan& plan, const Candidates& candidates, const Device& device);

// Computes the logits, probabilities and scores of a covered call.
void launch_tower_sm90(const TowerCall& call, const Device& device, Stream stream);

}  // namespace resflow::cuda
