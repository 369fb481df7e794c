// The program kernels that multiply in tensorfloat32.
#include "cuda/towers/program_launch.h"

template struct resflow::cuda::ProgramLaunch<resflow::Precision::tensorfloat32>;
