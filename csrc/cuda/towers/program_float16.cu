// The program kernels that multiply in float16.
#include "cuda/towers/program_launch.h"

template struct resflow::cuda::ProgramLaunch<resflow::Precision::float16>;
