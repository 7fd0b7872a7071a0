"""A convolution that knows how to be vmapped over the members of a pool.

`jax.vmap` turns a convolution with one kernel per member into a *grouped* convolution, and its gradient into a
batch-grouped one. What a compiler makes of them differs by platform, so what is written here does too (`WAYS`): the
convolution carries its own batching rule, which runs the members one by one inside the same program, where that is
better. Nothing else in the project knows about it: the pool is still `vmap`.

Convolutions that are grouped in a single network already (depthwise ones, grouped 1x1 ones) are written without the
convolution instruction, as products and sums that `vmap` needs no help with; on CPU that is several times faster also
for one network.

`convolution_for(platform)` has the signature that `flax.nnx.Conv(conv_general_dilated=...)` expects. It can be
differentiated (once, in reverse mode) inside or outside `vmap`, and nested `vmap`s work.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.xla_metadata import set_xla_metadata

from orc_jax import processor

NHWC = ("NHWC", "HWIO", "NHWC")
Convolution = Callable[..., jax.Array]  # as `jax.lax.conv_general_dilated`


class Way(NamedTuple):
    """How the convolutions of a stack are written for a platform.

    one_by_one: the members in turn; else grouped, as `jax.vmap` has it.
    written_out: the gradients are convolutions in the layout of the forward pass; else the transposes that JAX takes.
    """

    one_by_one: bool
    written_out: bool


# By the platform that a program is compiled for. An iteration of five ResNet-20s at batch 128, one by one over the
# grouped convolutions of `vmap`: on CPU about 1/20 of the time, two fifths less with gradients written out; on an H200
# 0.64 of the time (14.1 ms, 22.1 ms); for a TPU v5e, which none was run on, 1.8 times the cycles that its compiler
# estimates for forward and backward, so that there `vmap` stays as it is.
WAYS = {
    "cpu": Way(one_by_one=True, written_out=True),
    "gpu": Way(one_by_one=True, written_out=False),
    "tpu": Way(one_by_one=False, written_out=False),
}


def convolution_for(platform: str) -> Convolution:
    """The convolution of networks whose program is compiled for `platform`, as a device names it."""
    return _written(WAYS.get(platform, WAYS["gpu"]))


@functools.cache
def _written(way: Way) -> Convolution:
    return functools.partial(conv_general_dilated, way)


def depthwise(
    images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """Each channel with its own kernel: the sum over the kernel's positions of shifted images times its weights.

    Args:
        images: `[batch, height, width, channels]`.
        kernel: `[height, width, 1, channels]`.
        strides, padding: of height and width.

    Returns:
        `[batch, height, width, channels]` of the images' type; the sum is taken in float32.
    """
    rows, columns = kernel.shape[:2]
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    last_row, last_column = padded.shape[1] - rows, padded.shape[2] - columns
    total: Any = 0.0
    for i in range(rows):
        for j in range(columns):
            shifted = padded[:, i : i + last_row + 1 : strides[0], j : j + last_column + 1 : strides[1]]
            total += shifted * kernel[i, j, 0].astype(jnp.float32)[None, None, None]
    return checkpoint_name(total.astype(images.dtype), "depthwise")  # a convolution to who decides what is kept


def grouped_pointwise(images: jax.Array, kernel: jax.Array, groups: int, precision: Any) -> jax.Array:
    """A grouped 1x1 convolution of stride 1: one matrix product per group.

    Args:
        images: `[batch, height, width, channels]`.
        kernel: `[1, 1, channels / groups, features]`; group `g` has the features `g * features / groups ...`.
        groups: number of groups.
        precision: as in `jax.lax.dot_general`.

    Returns:
        `[batch, height, width, features]`.
    """
    grouped = images.reshape(*images.shape[:3], groups, -1)
    kernels = kernel.reshape(grouped.shape[-1], groups, -1)
    return jnp.einsum("bhwgi,igo->bhwgo", grouped, kernels, precision=precision).reshape(*images.shape[:3], -1)


def over_members(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Gives `op` a batching rule that applies it to each member in turn and stacks the results."""
    mapped = jax.custom_batching.custom_vmap(op)

    @mapped.def_vmap
    def rule(axis_size, in_batched, *operands):
        # Calling `mapped`, not `op`, keeps the rule in force for a further `vmap` around this one.
        results = (
            mapped(*(x[i] if batched else x for x, batched in zip(operands, in_batched, strict=True)))
            for i in range(axis_size)
        )
        return jnp.stack(list(results)), True

    return mapped


@functools.cache
def _one_by_one(options: tuple[tuple[str, Any], ...], written_out: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The convolution for one set of static options; cached so that equal layers share traces.

    Args:
        options: of `jax.lax.conv_general_dilated`.
        written_out: its gradients are convolutions that are written here; else the transposes that JAX uses, which need
            the shape of the operand, not its value.
    """

    def plain(images, kernel):
        return (_convolve if written_out else lax.conv_general_dilated)(images, kernel, **dict(options))

    @functools.cache
    def images_gradient(shape, dtype):
        if written_out:
            return over_members(functools.partial(_canonical_images_gradient, shape, dict(options)))
        like = jax.ShapeDtypeStruct(shape, dtype)
        return over_members(lambda g, kernel: jax.linear_transpose(lambda x: plain(x, kernel), like)(g)[0])

    @functools.cache
    def kernel_gradient(shape, dtype):
        if written_out:
            return over_members(functools.partial(_canonical_kernel_gradient, shape, dict(options)))
        like = jax.ShapeDtypeStruct(shape, dtype)
        return over_members(lambda g, images: jax.linear_transpose(lambda w: plain(images, w), like)(g)[0])

    forward = over_members(plain)
    convolve = jax.custom_vjp(forward)

    def convolve_fwd(images, kernel):
        return forward(images, kernel), (images, kernel)

    def convolve_bwd(residuals, g):
        images, kernel = residuals
        return (
            images_gradient(images.shape, images.dtype)(g, kernel),
            kernel_gradient(kernel.shape, kernel.dtype)(g, images),
        )

    convolve.defvjp(convolve_fwd, convolve_bwd)
    return convolve


def _convolve(lhs: jax.Array, rhs: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated`, computed as `_computable` says."""
    return lax.conv_general_dilated(_computable(lhs), _computable(rhs), *args, **options).astype(lhs.dtype)


def _computable(x: jax.Array) -> jax.Array:
    """An operand in float32 where the processor does not multiply bfloat16.

    XLA:CPU would compute in float32 there by itself, if it did not give it to oneDNN, which takes three times as long.
    """
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 and not processor.multiplies_bfloat16() else x


def _canonical_images_gradient(
    images_shape: tuple[int, ...], options: dict[str, Any], g: jax.Array, kernel: jax.Array
) -> jax.Array:
    """The gradient of the images, as convolutions of the cotangent with the flipped kernel.

    With strides there is one for each remainder of rows and of columns, of the kernel's positions that reach these; a
    single one of the dilated cotangent would multiply zeros for the most.

    Args:
        images_shape: `[batch, height, width, channels]`.
        options: of the convolution.
        g: cotangent of its result, `[batch, height', width', features]`.
        kernel: `[height, width, channels, features]`.
    """
    strides = options["window_strides"]
    # of every stride-th row from each first on: how many, the kernel's rows that reach them, the cotangent's padding
    parts = [[], []]
    for axis, stride in enumerate(strides):
        count, low = -(-images_shape[1 + axis] // stride), options["padding"][axis][0]
        for first in range(stride):
            before, remainder = divmod(first + low, stride)
            reaching = len(range(remainder, kernel.shape[axis], stride))
            left = reaching - 1 - before
            right = count + reaching - 1 - g.shape[1 + axis] - left
            parts[axis].append((count, slice(remainder, None, stride), (left, right)))

    def part(height, rows, row_padding, width, columns, column_padding):
        reaching = kernel[rows, columns]
        if not reaching.size:
            return jnp.zeros((g.shape[0], height, width, kernel.shape[2]), g.dtype)
        return _convolve(
            g,
            reaching[::-1, ::-1].swapaxes(2, 3),
            (1, 1),
            (row_padding, column_padding),
            dimension_numbers=NHWC,
            precision=options["precision"],
        )

    gradients = [[part(*rows, *columns) for columns in parts[1]] for rows in parts[0]]
    if strides == (1, 1):
        return gradients[0][0]
    joined = jnp.stack([jnp.stack(of_rows, 3) for of_rows in gradients], 2)
    return lax.collapse(lax.collapse(joined, 3, 5), 1, 3)[:, : images_shape[1], : images_shape[2]]


def _canonical_kernel_gradient(
    kernel_shape: tuple[int, ...], options: dict[str, Any], g: jax.Array, images: jax.Array
) -> jax.Array:
    """The gradient of the kernel, as a convolution of the images, channels as batch, with the cotangent.

    Args:
        kernel_shape: `[height, width, channels, features]`.
        options: of the convolution.
        g: cotangent of its result, `[batch, height', width', features]`.
        images: its operand, `[batch, height, width, channels]`.
    """
    strides = options["window_strides"]
    padding = []
    for i, (low, high) in enumerate(options["padding"]):
        # rows at the end that no window reaches are left out
        unused = images.shape[1 + i] + low + high - kernel_shape[i] - (g.shape[1 + i] - 1) * strides[i]
        padding.append((low, high - unused))

    # oneDNN takes up to twice as long over it as XLA's own in float32, and leaves one with a reversed operand to it.
    order = slice(None, None, -1 if _computable(g).dtype == jnp.float32 else None)

    @jax.jit
    def kernel_gradient(g, images):
        gradient = _convolve(
            images.transpose(3, 1, 2, 0),
            _computable(g.transpose(1, 2, 0, 3))[..., order],
            (1, 1),
            padding,
            rhs_dilation=strides,
            dimension_numbers=NHWC,
            precision=options["precision"],
        )
        return gradient.transpose(1, 2, 0, 3)[..., order]

    # XLA would fuse whatever made the operands, normalisation and ReLU, into the transpositions, where it runs once
    # more, with strided reads: for a pool of five ResNet-20s that was two fifths of the time. As a function of its own
    # in the compiled program this gets plain arrays.
    with set_xla_metadata(inlineable="false"):
        return kernel_gradient(g, images)


def conv_general_dilated(
    way: Way,
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    out_sharding: None = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for networks that live in a pool.

    Args:
        way: how it is written.
        lhs: images, `[batch, height, width, channels]` with Flax's dimension numbers.
        rhs: kernel, `[height, width, channels / groups, features]`.
        window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision:
            as in `jax.lax.conv_general_dilated`.
        out_sharding: must be None; Flax passes it on to every convolution.

    Returns:
        The convolved images, `[batch, height, width, features]`.

    Raises:
        ValueError: if `out_sharding` is given.
    """
    if out_sharding is not None:
        raise ValueError("out_sharding: explicit shardings are not supported, the pool shards by pmap")
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    undilated = lhs_dilation in (None, (1, 1)) and rhs_dilation in (None, (1, 1))
    canonical = undilated and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
    if canonical and isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    if feature_group_count > 1 and canonical and not isinstance(padding, str):
        if feature_group_count == lhs.shape[-1] == rhs.shape[-1]:
            return depthwise(lhs, rhs, window_strides, padding)
        if rhs.shape[:2] == (1, 1) and tuple(window_strides) == (1, 1) and not np.any(padding):
            return grouped_pointwise(lhs, rhs, feature_group_count, precision)

    def hashable(x):
        return x if x is None or isinstance(x, str) else tuple(x)

    options: dict[str, Any] = {
        "window_strides": tuple(window_strides),
        "padding": padding if isinstance(padding, str) else tuple(map(tuple, padding)),
        "lhs_dilation": hashable(lhs_dilation),
        "rhs_dilation": hashable(rhs_dilation),
        "dimension_numbers": numbers,
        "feature_group_count": feature_group_count,
        "precision": precision,
    }
    if not way.one_by_one:
        return lax.conv_general_dilated(lhs, rhs, **options)
    written_out = way.written_out and canonical and feature_group_count == 1
    return _one_by_one(tuple(options.items()), written_out)(lhs, rhs)
