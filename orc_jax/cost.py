"""What a function costs, counted in its trace: nothing is compiled or run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
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
    if equation.primitive.name not in ("conv_general_dilated", "dot_general"):
        return 0.0
    operands = tuple((v.aval.shape, v.aval.dtype) for v in equation.invars)
    return _flops(equation.primitive, tuple(equation.params.items()), operands)


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


@functools.cache
def _flops(primitive, params: tuple, operands: tuple) -> float:
    """As XLA counts them, which knows of padding and dilation."""
    function = jax.jit(lambda *x: primitive.bind(*x, **dict(params)))
    costs: Any = function.lower(*(jax.ShapeDtypeStruct(*operand) for operand in operands)).cost_analysis()
    return costs["flops"]
