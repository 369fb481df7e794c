// The tower kernels that multiply in float32.
#include "cuda/towers/tower_launch.h"

template struct resflow::cuda::TowerLaunch<resflow::Precision::float32>;
