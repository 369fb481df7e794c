"""``python -m bench.models`` (``make bench-models``): what ``fuse`` does to the models of four recommender packages."""
