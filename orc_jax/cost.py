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

    def of_equation(equation) -> float:
        if equation.primitive.name not in ("conv_general_dilated", "dot_general"):
            return 0.0
        operands = tuple((v.aval.shape, v.aval.dtype) for v in equation.invars)
        return _flops_of_one(equation.primitive, tuple(equation.params.items()), operands)

    return total(jax.make_jaxpr(function)(*args).jaxpr, of_equation)


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
def _flops_of_one(primitive, params: tuple, operands: tuple) -> float:
    """As XLA counts them, which knows of padding and dilation."""
    function = jax.jit(lambda *x: primitive.bind(*x, **dict(params)))
    costs: Any = function.lower(*(jax.ShapeDtypeStruct(*operand) for operand in operands)).cost_analysis()
    return costs["flops"]
