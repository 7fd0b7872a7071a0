"""JAX functions as ONNX graphs: each operation by itself, in orders of axes that no network here has."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from orc_jax.deploy.onnx_graph import to_onnx
from orc_jax.errors import UserError

SHAPE = (5, 6, 3)
rng = np.random.default_rng(0)
KERNEL = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
WEIGHT = rng.normal(size=(3, 7)).astype(np.float32)
MAPS = ("NHWC", "HWIO", "NHWC")


def window(x, init, operation, size, strides, padding):
    return lax.reduce_window(x, init, operation, (1, *size, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def flat(x):
    return x.reshape(x.shape[0], -1)


FUNCTIONS = {
    "a strided convolution with uneven padding": lambda x: lax.conv_general_dilated(
        x, KERNEL, (2, 1), ((0, 1), (2, 0)), dimension_numbers=MAPS
    ).sum((1, 2)),
    "a dilated convolution": lambda x: lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", rhs_dilation=(2, 1), dimension_numbers=MAPS
    ).sum((1, 2)),
    "a convolution in groups": lambda x: lax.conv_general_dilated(
        x, KERNEL[:, :, :1, :3], (1, 1), "VALID", dimension_numbers=MAPS, feature_group_count=3
    ).sum((1, 2)),
    "a maximum over windows": lambda x: flat(window(x, -jnp.inf, lax.max, (3, 2), (2, 1), ((1, 0), (0, 1)))),
    "a mean over windows": lambda x: flat(window(x, 0.0, lax.add, (2, 3), (1, 2), ((0, 1), (1, 0))) / 6),
    "a sum over the middle axis": lambda x: flat(x.sum(2)),
    "a sum over two axes of a convolution": lambda x: lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", dimension_numbers=MAPS
    ).sum((1, 3)),
    "a sum over one axis of a convolution": lambda x: flat(
        lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", dimension_numbers=MAPS).sum(1)
    ),
    "transpositions": lambda x: flat(x.transpose(0, 2, 1, 3).transpose(0, 3, 1, 2) * x.transpose(0, 3, 2, 1)),
    "a transposed convolution times what is not": lambda x: flat(
        lax.conv_general_dilated(x, KERNEL[..., :3], (1, 1), "SAME", dimension_numbers=MAPS) * x
    ),
    "parts, turned round and joined": lambda x: flat(jnp.concatenate(jnp.split(x, [2], axis=2)[::-1], axis=2)),
    "a constant beside the images": lambda x: flat(jnp.concatenate([x, x * 0 + 1], axis=3)),
    "a matrix product": lambda x: x.sum((1, 2)) @ WEIGHT,
    "a matrix product of the last axis": lambda x: flat(x @ WEIGHT),
    "a matrix product of another axis": lambda x: flat(
        jnp.einsum("bhwc,hd->bwcd", x, KERNEL[:, 0, 0, :][[0, 1, 2, 0, 1]])
    ),
    "a product of what depends on the images": lambda x: jnp.einsum("bhwc,bhwd->bcd", x, x).sum(1),
    "a product with batch axes": lambda x: flat(jnp.einsum("bhwc,bvwc->bwhv", x, x.transpose(0, 1, 2, 3) - 1)),
    "softmax": lambda x: flat(jax.nn.softmax(x / 99, axis=2)),
    "a mean that is broadcast again": lambda x: flat(x - jnp.broadcast_to(x.mean(3, keepdims=True), x.shape)),
    "roots and squares": lambda x: flat(lax.rsqrt(jnp.square(x) + 1.0) + jnp.sqrt(x)),
    "activations": lambda x: flat(
        jax.nn.gelu(x / 99 - 1, approximate=False) + jax.nn.silu(x / 99 - 1) + jnp.tanh(x) + lax.erf(x / 99)
    ),
    "hard activations": lambda x: flat(jax.nn.hard_swish(x / 50 - 2) + jax.nn.hard_sigmoid(x / 50 - 2)),
    "parts and zeros around them": lambda x: flat(
        jnp.pad(lax.slice_in_dim(x, 1, 4, 2, axis=1), ((0, 0), (1, 0), (0, 2), (0, 0)))
    ),
    "differences and quotients, either way": lambda x: flat((1.0 - x) / (x + 2.0) - x / 3.0),
    "maxima and minima": lambda x: flat(jnp.minimum(jnp.maximum(0.0, x - 100.0), 6.0) + jnp.maximum(x, 50.0)),
    "what does not depend on the images": lambda x: flat(x * jnp.asarray(KERNEL[0, 0, :, 0]).sum()),
    "a function in a function": lambda x: flat(jax.jit(lambda y: jax.nn.relu(y - 99.0))(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name):
    def function(images):
        return FUNCTIONS[name](images.astype(jnp.float32))

    images = np.random.default_rng(1).integers(0, 256, (4, *SHAPE), np.uint8)
    file = to_onnx(function, SHAPE, {"architecture": "x"})
    onnx.checker.check_model(onnx.load_from_string(file), full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 4):
        expected = np.asarray(function(images[:batch]))
        (actual,) = session.run(["logits"], {"images": images[:batch]})
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-2)


REFUSED = {
    "cumsum": lambda x: lax.cumsum(x, axis=1).sum((1, 2)),
    "conv_general_dilated": lambda x: lax.conv_general_dilated(
        x, KERNEL, (1, 1), ((1, 1), (1, 1)), lhs_dilation=(2, 2), dimension_numbers=MAPS
    ).sum((1, 2)),
    "reduce_window_max": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 3), (1, 1, 1, 1), "VALID")[
        :, 0, 0
    ],
    "pad": lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 1, 1), (0, 0, 0), (0, 0, 0))).sum((2, 3)),
    "gather": lambda x: x[:, jnp.array([0, 2])].sum((2, 3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_translated_is_named(name):
    with pytest.raises(UserError, match=f"^--format=onnx: .* not translated: {name}$"):
        to_onnx(lambda images: REFUSED[name](images.astype(jnp.float32)), SHAPE, {"architecture": "x"})
