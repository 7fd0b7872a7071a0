"""What a function costs, counted in its trace: nothing is compiled or run."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params


def flops(function: Callable, *args) -> float:
    """Floating-point operations of the convolutions and matrix products of `function(*args)`.

    A loop of known length counts as often as it runs; of the branches of a choice the dearest counts.

    Args:
        function: to be traced.
        args: arrays, or their shapes and types.
    """

    return flops_of(jax.make_jaxpr(function)(*args).jaxpr)


def flops_of(jaxpr) -> float:
    """As `flops`, of a trace."""
    return total(jaxpr, flops_of_one)


def flops_of_one(equation) -> float:
    """Those of an equation of a trace, if it is a convolution or a product; for `total`."""
    of = {"dot_general": _of_product, "conv_general_dilated": _of_convolution}.get(equation.primitive.name)
    return of(equation) if of else 0.0


def result_bytes(equation) -> float:
    """Bytes of what an equation of a trace makes, for `total`."""
    if any(True for _ in jaxprs_in_params(equation.params)):
        return 0.0  # its inner equations are counted
    return float(sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "dtype")))


def total(jaxpr, of_equation: Callable[[Any], float]) -> float:
    """The sum of a cost over the equations of a trace, counted as in `flops`."""
    result = 0.0
    for equation in jaxpr.eqns:
        inner = [total(sub, of_equation) for sub in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            result += max(inner)
        elif equation.primitive.name == "scan":
            result += equation.params["length"] * sum(inner)
        else:
            result += of_equation(equation) + sum(inner)
    return result


def _of_product(equation) -> float:
    """Of a `dot_general`."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _of_convolution(equation) -> float:
    """Of a `conv_general_dilated`, without products with the zeros of padding and dilation: as XLA counts them."""
    params, (images, kernel) = equation.params, (v.aval.shape for v in equation.invars)
    numbers = params["dimension_numbers"]
    batch, features = (images[i] for i in numbers.lhs_spec[:2])
    result = 2.0 * kernel[numbers.rhs_spec[0]] * features * batch
    result /= params["feature_group_count"] * params["batch_group_count"]
    sizes = [(images[i], kernel[j]) for i, j in zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], strict=True)]
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    for (size, width), *window in zip(sizes, *(params[name] for name in names), strict=True):
        result *= _positions(size, width, *window)
    return result


@functools.cache
def _positions(size: int, width: int, stride: int, padding: tuple[int, int], spread: int, dilation: int) -> int:
    """How many products of an element of an axis and one of the kernel there are, over all places of the kernel.

    Args:
        size: of the axis.
        width: of the kernel.
        stride: from place to place.
        padding: zeros before and after.
        spread: distance of the elements of the axis, with zeros between them.
        dilation: distance of the elements of the kernel.
    """
    padded = sum(padding) + (size - 1) * spread + 1
    places = stride * np.arange((padded - (width - 1) * dilation - 1) // stride + 1)
    at = places[:, None] + dilation * np.arange(width) - padding[0]
    return int(np.sum((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)))
