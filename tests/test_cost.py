"""Operations counted in a trace, against counts by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

from orc_jax.cost import flops, total
from orc_jax.models.conv import convolution_for


def test_products_loops_and_branches():
    a, b = jnp.ones((2, 3)), jnp.ones((3, 5))
    product = 2 * 2 * 3 * 5
    assert flops(lambda a, b: a @ b, a, b) == product
    assert flops(lambda a, b: jax.lax.fori_loop(0, 7, lambda _, x: x + (a @ b).sum(), 0.0), a, b) == 7 * product
    choose = lambda i, a, b: jax.lax.switch(i, [lambda: a @ b, lambda: a @ b + a @ b], *())  # noqa: E731
    assert flops(choose, 0, a, b) == 2 * product


def test_convolutions_of_a_pool_and_their_gradients():
    """Without padding, a forward pass and both gradients do the same multiplications; members add up."""
    images, kernels = jnp.ones((4, 8, 8, 3)), jnp.ones((5, 3, 3, 3, 16))
    conv = lambda x, w: convolution_for("cpu")(  # noqa: E731
        x, w, (1, 1), ((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    pool = jax.vmap(conv, in_axes=(None, 0))
    forward = 5 * 2 * 4 * 6 * 6 * 16 * 3 * 3 * 3
    assert flops(pool, images, kernels) == forward
    gradient = jax.grad(lambda x, w: pool(x, w).sum(), (0, 1))
    assert flops(gradient, images, kernels) == 3 * forward


@pytest.mark.parametrize("groups", [{"feature_group_count": 2}, {"batch_group_count": 2}])
def test_convolutions_are_counted_as_xla_does_for_a_cpu(groups):
    """Padded, cropped, strided, dilated, grouped. XLA counts nothing for a GPU, nor for a TPU, before it compiles."""
    images, kernel = jnp.ones((4, 9, 7, 6)), jnp.ones((3, 2, 6 // groups.get("feature_group_count", 1), 8))
    for padding, strides, lhs, rhs in [
        (((1, 1), (0, 0)), (1, 2), (1, 1), (1, 1)),
        (((2, 0), (-1, 1)), (2, 1), (2, 3), (1, 2)),
        (((3, 3), (2, 4)), (3, 2), (1, 2), (2, 1)),
    ]:
        numbers = ("NHWC", "HWIO", "NHWC")
        conv = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=numbers, lhs_dilation=lhs, **groups)
        conv = functools.partial(conv, window_strides=strides, padding=padding, rhs_dilation=rhs)
        assert flops(conv, images, kernel) == jax.jit(conv).lower(images, kernel).cost_analysis()["flops"]


def test_other_costs():
    """Counted as operations are: a loop as often as it runs, of the branches of a choice the dearest."""

    def sines(x, many):
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), jnp.sin(x))
        return jax.lax.cond(many, lambda x: jnp.sin(jnp.sin(x)), lambda x: jnp.cos(x), x)

    trace = jax.make_jaxpr(sines)(1.0, True).jaxpr
    assert total(trace, lambda equation: float(equation.primitive.name == "sin")) == 1 + 3 + 2
    assert total(trace, lambda equation: float(equation.primitive.name == "cos")) == 1
