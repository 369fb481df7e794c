"""Serving: bundles, the NumPy runtime, catalogs, quantization. Does not need torch."""
