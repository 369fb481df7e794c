"""The benchmarks of ``make bench`` and ``make bench-quick``; they measure with resflow_kernels.benchmark."""
