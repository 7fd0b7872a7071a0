"""One architecture as pure functions of one member; `vmap` makes them functions of a stack."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Var

from orc_jax.models import Model, noise, points

Params = dict[str, jax.Array]  # by dotted name: {"layer1.0.conv1.kernel": ..., ...}


class Network(NamedTuple):
    """The pure functions of a model.

    init: key -> (params, batch_stats)
    train: params, batch_stats, images -> (logits, features), batch_stats; batch normalisation by the batch
        and, if a fourth argument has keys [batch], what is drawn for each sample (see `orc_jax.models.noise`)
    predict: params, batch_stats, images -> (logits, features); batch normalisation by the running statistics
    module: params, batch_stats -> the Flax module that `predict` calls; None where it calls none
    """

    init: Callable
    train: Callable
    predict: Callable
    module: Any = None
    draws: tuple[str, ...] = ()  # the fields of `noise.KINDS` whose layers it has
    shapes: Callable[[], tuple[Params, Params]] | None = None  # what `init` returns, abstractly, if it is known


@functools.lru_cache(maxsize=64)
def make_network(
    model: Model,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: str = "float32",
    axis_name: str | None = None,
    convolution: Callable = jax.lax.conv_general_dilated,
    early: bool = False,
    maps: tuple[str, ...] = (),
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> Network:
    """The pure functions of a model, one of `MODELS` or of one's own; the arguments are the model's.

    `convolution` takes the place of JAX's own in its layers; `orc_jax.models.conv` has those for pools. With `early`,
    or with `maps`, `train` and `predict` give a dict after logits and features: `early`, the early features (see
    `layers.branch_point`), and `maps`, those kinds of `points.Maps`. `dropout` and `stochastic_depth` are the rates of
    such layers.
    """
    given = {"image_shape": image_shape, "dtype": jnp.dtype(dtype), "axis_name": axis_name}

    def build(key):
        return model(num_classes, **given, rngs=nnx.Rngs(key))

    def flat(state):
        named = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
        return dict(sorted(named.items()))  # as JAX has a dict that has been through a function

    # The modules are built once, abstractly; all that is kept of them is their structure.
    abstract = nnx.eval_shape(build, jax.random.key(0))
    modules: list[Any] = [module for _, module in nnx.iter_modules(abstract)]
    rates = {"dropout": dropout, "stochastic_depth": stochastic_depth}
    for module in modules:
        if isinstance(module, nnx.Conv) and module.conv_general_dilated is jax.lax.conv_general_dilated:
            module.conv_general_dilated = convolution
        for field, kind in noise.KINDS.items():
            if isinstance(module, kind):
                module.rate = rates[field]
    draws = tuple(field for field, kind in noise.KINDS.items() if any(isinstance(module, kind) for module in modules))
    state = nnx.state(abstract)
    paths = {".".join(map(str, path)): path for path in nnx.to_flat_state(state).paths}
    shapes = flat(nnx.filter_state(state, nnx.Param)), flat(nnx.filter_state(state, nnx.BatchStat))
    abstract.train()
    training = nnx.graphdef(abstract)
    abstract.eval()
    predicting = nnx.graphdef(abstract)

    def merge(graphdef, params, batch_stats):
        leaves = {paths[name]: leaf for name, leaf in (params | batch_stats).items()}
        return nnx.merge(graphdef, nnx.from_flat_state(leaves))

    def outputs(network, images):
        with points.noting(maps) as noted:
            result = network(images)
        more: dict[str, Any] = {}
        if early:
            (more["early"],) = jax.tree.leaves(nnx.pop(network, nnx.Intermediate))
        if maps:
            more["maps"] = {kind: tuple(noted[kind]) for kind in maps}
        return (*result, more) if more else result

    def init(key):
        network = build(key)
        return flat(nnx.state(network, nnx.Param)), flat(nnx.state(network, nnx.BatchStat))

    def train(params, batch_stats, images, keys=None):
        network = merge(training, params, batch_stats)
        with noise.drawing(keys):
            return outputs(network, images), flat(nnx.state(network, nnx.BatchStat))

    def module(params, batch_stats):
        return merge(predicting, params, batch_stats)

    def predict(params, batch_stats, images):
        return outputs(module(params, batch_stats), images)

    return Network(init, train, predict, module, draws, lambda: shapes)


@functools.lru_cache(maxsize=64)
def weight_shapes(network: Network) -> tuple[Params, Params]:
    """Shapes and types of a network's (params, batch_stats)."""
    return network.shapes() if network.shapes else jax.eval_shape(network.init, jax.random.key(0))


@functools.lru_cache(maxsize=64)
def layers_of(
    network: Network, image_shape: tuple[int, int, int], is_kernel: Callable[[str, jax.Array], bool]
) -> dict[str, int]:
    """The layer of each parameter, counted from the images, in the order in which `predict` first uses them.

    A block (see `block_of`) is one layer. What has no kernel, such as a normalisation, goes with what is before it.
    """
    params, batch_stats = weight_shapes(network)
    jaxpr = jax.make_jaxpr(network.predict)(params, batch_stats, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    used = {}
    for i, equation in enumerate(jaxpr.eqns):
        used |= {variable: i for variable in equation.invars if isinstance(variable, Var) and variable not in used}
    inputs = dict(zip(sorted(params), jaxpr.jaxpr.invars[: len(params)], strict=True))  # dicts are traced sorted
    groups: dict[str, list[str]] = {}
    for name in sorted(params, key=lambda name: used.get(inputs[name], len(jaxpr.eqns))):
        groups.setdefault(block_of(name), []).append(name)
    layers, layer = {}, -1
    for names in groups.values():
        layer += any(is_kernel(name, params[name]) for name in names)
        layers |= dict.fromkeys(names, max(layer, 0))
    return layers


def trunk(network: Network, params: Params, batch_stats: Params, image_shape: tuple[int, int, int]) -> frozenset[str]:
    """The names of the parameters that its maps of kind `post` depend on: all up to the last feature point.

    Args:
        network: one that gives such maps.
        params, batch_stats: of one member, or their shapes.
        image_shape: of an image.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda *given: network.predict(*given)[2]["maps"]["post"])(params, batch_stats, images).jaxpr
    needed = {variable for variable in jaxpr.outvars if isinstance(variable, Var)}
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed |= {variable for variable in equation.invars if isinstance(variable, Var)}
    inputs = zip(sorted(params), jaxpr.invars[: len(params)], strict=True)  # dicts are traced sorted
    return frozenset(name for name, variable in inputs if variable in needed)


def block_of(name: str) -> str:
    """The block that a parameter belongs to: up to its first number, `layer1.0`, or to that of a list within a stage,
    `blocks.1.0` or `stages.2.blocks.0`; without a number what the network calls it, `fc`."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return parts[0]
    within = numbers[0] + (2 if parts[numbers[0] + 1] == "blocks" else 1)
    return ".".join(parts[: (within if within in numbers else numbers[0]) + 1])


def class_axes(model: Model, num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """The parameters of a model that have an axis of classes, and which axis it is."""
    one, other = (weight_shapes(make_network(model, count, image_shape))[0] for count in (num_classes, num_classes + 1))
    pairs = {name: zip(array.shape, other[name].shape, strict=True) for name, array in one.items()}
    differing = {name: [i for i, (n, m) in enumerate(pair) if n != m] for name, pair in pairs.items()}
    return {name: axes[0] for name, axes in differing.items() if axes}


def with_outputs(params: Params, axes: Mapping[str, int], order: Sequence[int]) -> Params:
    """Parameters with their outputs in another order: the first is what was number `order[0]`; see `class_axes`."""
    return params | {name: jnp.take(params[name], jnp.array(order), axis) for name, axis in axes.items()}
