"""Times our kernels against PyTorch, ONNX Runtime and OpenVINO; shared by ``bench/`` and ``resflow bench``.

==============  =====================================================================
``interleave``  times calls interleaved within one process
``towers``      a ranker in plain PyTorch, as well written as it can be by hand
``onnx_graph``  the same ranker as an ONNX graph
``baselines``   one class per implementation, ours included, behind one interface
``suite``       checks implementations against the reference, then times them
==============  =====================================================================

Needs torch. onnx, onnxruntime and openvino are optional: a baseline whose library is missing reports that.
"""
