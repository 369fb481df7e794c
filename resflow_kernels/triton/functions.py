"""Functions of logits, building blocks of activations, and rounding, on tiles of float32.

The formulas are those of ``csrc/cuda/device/math.h``. NaN propagates through all of them: bounds are comparisons that
are false for NaN. Only ``tl`` is used, so they compile for every GPU that Triton supports.
"""

import triton
import triton.language as tl

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.constexpr_function
def at(values, place):
    """An element of a constant tuple, as a constant; ``place`` may be the counter of an unrolled loop."""
    return values[place]


@triton.constexpr_function
def divides(divisor, number):
    return number % divisor == 0


@triton.constexpr_function
def round_up(number, unit):
    return (number + unit - 1) // unit * unit


@triton.jit
def only_if(condition, mask):
    """``mask`` if the condition, a single truth value, holds; else nothing.

    Not ``mask & condition``: the interpreter of Triton 3.9 makes that an integer, which it does not accept as a mask.
    """
    return tl.where(condition, mask, False)


@triton.jit
def wide(value):
    """A number as int64; it may be a loop's counter, which is Python's int in the interpreter."""
    return tl.zeros([], tl.int64) + value


@triton.jit
def at_least(value, bound):
    return tl.where(value < bound, bound, value)


@triton.jit
def at_most(value, bound):
    return tl.where(value > bound, bound, value)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """From e^-2|x|, which does not overflow; near 0, where that loses digits, from the series' first terms."""
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    large = (1.0 - e) / (1.0 + e)
    square = x * x
    small = size * (1.0 - square * (0.33333333 - square * (0.13333333 - square * 0.053968254)))
    value = tl.where(size < 0.1, small, large)
    return tl.where(x < 0, -value, value)


@triton.jit
def log_sigmoid(x):
    """min(x, 0) - log(1 + e^-|x|)"""
    return at_most(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def logit_of_product(a, b):
    """-log(e^-a + e^-b + e^-(a+b)): the logit of sigmoid(a) * sigmoid(b)."""
    both = a + b
    lowest = at_most(at_most(a, b), both)
    finite = lowest - tl.log(tl.exp(lowest - a) + tl.exp(lowest - b) + tl.exp(lowest - both))
    # An infinite `lowest` is the answer itself (inf - inf would be NaN); adding 0 or NaN keeps b's NaN.
    return tl.where(tl.abs(lowest) > LARGEST, lowest + at_most(tl.abs(b), 0.0), finite)


@triton.jit
def operand(values, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """Values rounded to a plan's precision, as operands of a product.

    Triton's interpreter truncates where it should round to bfloat16, and its products of bfloat16 are wrong: under the
    interpreter alone, operands of 16 bits are float32 values that 16 bits can hold.
    """
    if PRECISION == "bfloat16":
        if INTERPRETED:
            values = values.to(tl.float32)
            bits = values.to(tl.int32, bitcast=True)
            nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
            return tl.where(values == values, nearest, values)
        else:
            return values.to(tl.bfloat16)
    elif PRECISION == "float16":
        if INTERPRETED:
            return values.to(tl.float16).to(tl.float32)
        else:
            return values.to(tl.float16)
    elif PRECISION == "tensorfloat32":
        # Rounds to nearest, ties away from zero; a product would drop the low bits instead. Infinities and NaN are
        # unchanged.
        values = values.to(tl.float32)
        nearest = ((values.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        return tl.where(tl.abs(values) <= LARGEST, nearest, values)
    else:
        tl.static_assert(PRECISION == "float32", "a precision of contract/enums.def without its operand")
        return values.to(tl.float32)


@triton.jit
def multiply(sums, a, b, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """``sums + a b`` of operands."""
    if INTERPRETED:
        # The last bits of NumPy's float32 products depend on the position of a row in a tile.
        wide_sums = tl.dot(a.to(tl.float64), b.to(tl.float64), sums.to(tl.float64), out_dtype=tl.float64)
        return wide_sums.to(tl.float32)
    elif PRECISION == "tensorfloat32":
        return tl.dot(a, b, sums, input_precision="tf32")
    else:
        return tl.dot(a, b, sums, input_precision="ieee")
