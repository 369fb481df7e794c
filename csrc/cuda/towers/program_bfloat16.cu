// The program kernels that multiply in bfloat16.
#include "cuda/towers/program_launch.h"

template struct resflow::cuda::ProgramLaunch<resflow::Precision::bfloat16>;
