// The program kernels that multiply in float32.
#include "cuda/towers/program_launch.h"

template struct resflow::cuda::ProgramLaunch<resflow::Precision::float32>;
