"""Timing our kernels beside PyTorch, ONNX Runtime and OpenVINO: what ``bench/`` and ``resflow bench`` share.

==============  =====================================================================
``turns``       times contestants in turns within one process
``towers``      a ranker in plain PyTorch, as well written as it can be by hand
``onnx_graph``  the same ranker as an ONNX graph
``peers``       one class a contestant, ours included, behind one interface
``contest``     checks contestants against the reference, then times them in turns
==============  =====================================================================

Needs torch. onnx, onnxruntime and openvino are optional: a peer whose library is missing says so.
"""
