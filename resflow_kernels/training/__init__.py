"""Training: embedding tables in front of any towers, a loop that resumes bitwise, streams of Parquet and CSV.

``import resflow_kernels`` imports none of it. Needs torch; :mod:`.stream` and :mod:`.pipeline`, which ``resflow train``
runs, also need the ``cli`` extra.
"""
