"""``make gpu``: build, tests, sanitizer and benchmarks on a GPU, within nine minutes and without the network."""
