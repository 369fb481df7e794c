"""What tests share: drawn models and inputs, devices, comparisons, files, processes."""
