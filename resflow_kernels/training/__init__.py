"""Training: embedding tables in front of any towers, a loop that resumes to the bit, streams of Parquet and CSV.

Nothing of it is imported by ``import resflow_kernels``. Needs torch; :mod:`.stream` and :mod:`.pipeline`, which
``resflow train`` runs, also the ``cli`` extra.
"""
