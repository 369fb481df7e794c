"""``python -m resflow_kernels.cli``: the ``resflow`` command where its console script is not installed."""

from . import main

main()
