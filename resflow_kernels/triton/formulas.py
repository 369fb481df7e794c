"""The contract's activations and fusions as Triton functions, from the modules that also define them for PyTorch."""

from ..core import fusion
from ..reference import activations

activate, derivative = activations.triton_functions()
add_to_score, finish_score = fusion.triton_functions()
