"""The benchmarks: ``make bench``, ``make bench-quick``. What they measure with is resflow_kernels.benchmark."""
