// The tower kernels that multiply in tensorfloat32.
#include "cuda/towers/tower_launch.h"

template struct resflow::cuda::TowerLaunch<resflow::Precision::tensorfloat32>;
