// The tower kernels that multiply in bfloat16.
#include "cuda/towers/tower_launch.h"

template struct resflow::cuda::TowerLaunch<resflow::Precision::bfloat16>;
