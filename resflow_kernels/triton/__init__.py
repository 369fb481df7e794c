"""The dense, request and catalogue forms as Triton kernels: one source for the GPUs that Triton compiles for.

Chosen by ``backend="triton"`` (:mod:`resflow_kernels.backends`); computes in float32, tensorfloat32, bfloat16 and
float16 on the packed weights that all backends share. Importing this package does not import Triton.
"""
