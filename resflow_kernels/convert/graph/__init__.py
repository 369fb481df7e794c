"""The graph of a user's model, lowered to tile programs. Needs torch.

:mod:`.trace` gets the graph from ``torch.export``; :mod:`.lowering` reads it node by node into steps whose rows are
index bookkeeping; :mod:`.regions` cuts the steps into one-pass regions; :mod:`.simplify` merges steps;
:mod:`.emit` makes each region a :class:`~resflow_kernels.core.program.Program`; :mod:`.source` writes what is left as
Python source, and :mod:`.module` is the module that runs it.
"""
