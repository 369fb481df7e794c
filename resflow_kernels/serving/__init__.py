"""Serving: bundles, the NumPy runtime, catalogs, quantization. Needs no torch."""
