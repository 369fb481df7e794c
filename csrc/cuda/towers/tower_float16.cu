// The tower kernels that multiply in float16.
#include "cuda/towers/tower_launch.h"

template struct resflow::cuda::TowerLaunch<resflow::Precision::float16>;
