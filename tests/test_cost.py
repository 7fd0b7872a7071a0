"""Operations counted in a trace, against counts by hand."""

import jax
import jax.numpy as jnp

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


def test_other_costs():
    """Counted as operations are: a loop as often as it runs, of the branches of a choice the dearest."""

    def sines(x, many):
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), jnp.sin(x))
        return jax.lax.cond(many, lambda x: jnp.sin(jnp.sin(x)), lambda x: jnp.cos(x), x)

    trace = jax.make_jaxpr(sines)(1.0, True).jaxpr
    assert total(trace, lambda equation: float(equation.primitive.name == "sin")) == 1 + 3 + 2
    assert total(trace, lambda equation: float(equation.primitive.name == "cos")) == 1
