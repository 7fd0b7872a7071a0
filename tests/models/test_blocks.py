"""Layers of transformers and of the convolutional networks of today, alone and in pools."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from orc_jax import models, optim
from orc_jax.cost import total
from orc_jax.errors import UserError
from orc_jax.methods import METHODS
from orc_jax.models import efficientnet, resnet
from orc_jax.models.blocks import Attention, Patches
from orc_jax.models.convnext import ConvNeXt
from orc_jax.models.efficientnet import EfficientNet, Row
from orc_jax.models.network import block_of, layers_of, make_network, weight_shapes
from orc_jax.models.vit import Mixer, VisionTransformer
from orc_jax.testing import Stepper, build_run, run_steps

SHAPE = (8, 8, 1)  # of the toy set
ROWS = ((Row("ds", 1, 3, 1, 1, 8, True),), (Row("ir", 1, 3, 2, 2, 8, True),))
VIT = functools.partial(VisionTransformer, features=8, heads=2, blocks=2, patch=4)
FAMILIES = {
    "tiny_vit": VIT,
    "tiny_mixer": functools.partial(Mixer, features=8, blocks=2, patch=4),
    "tiny_convnext": functools.partial(ConvNeXt, blocks=(1, 1), widths=(4, 8), patch=1),
    "tiny_mobile": functools.partial(EfficientNet, stages=ROWS, stem=8, style=efficientnet.mobile(head=8)),
    "tiny_efficient": functools.partial(
        EfficientNet, stages=ROWS, stem=8, style=efficientnet.efficient(head=8, same=True)
    ),
    "tiny_resnetd": functools.partial(resnet.ResNet, blocks=(1, 1), widths=(8, 8, 16), stem="deep"),
}
own = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """A tiny network of each family is registered."""
    for name, model in FAMILIES.items():
        monkeypatch.setitem(models.MODELS, name, model)
    monkeypatch.setitem(models.LAST_STAGE, "tiny_vit", ("blocks.1", "norm", "head"))


@pytest.mark.parametrize(("size", "side"), [(1, 5), (2, 7), (3, 9)])
def test_patches_are_a_convolution(size, side):
    """Also where the last pixels fill no window."""
    layer, x = Patches(3, 5, size, **own), jax.random.normal(jax.random.key(0), (2, side, side, 3))
    expected = jax.lax.conv_general_dilated(
        x, layer.kernel[...], (size, size), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer(x), expected + layer.bias[...][None, None, None], rtol=1e-5, atol=1e-6)


def test_attention_golden():
    """Of one image with two heads, by hand."""
    layer, x = Attention(4, 2, **own), jax.random.normal(jax.random.key(0), (1, 3, 4))
    parts = np.split(np.asarray(x[0] @ layer.qkv.kernel[...]), 3, axis=1)
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        query, key, value = (part[:, head] for part in parts)
        scores = np.exp(query @ key.T / 2**0.5)
        heads.append(scores / scores.sum(1, keepdims=True) @ value)
    expected = np.concatenate(heads, axis=1) @ layer.proj.kernel[...]
    np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-4, atol=1e-6)


def products(function, *args):
    """Shapes of the operands of the matrix products of a function, and the axes that they are batched over."""
    found = []

    def of_equation(equation):
        if equation.primitive.name == "dot_general":
            batch = equation.params["dimension_numbers"][1]
            sizes = [equation.invars[0].aval.shape[axis] for axis in batch[0]]
            found.append((tuple(x.aval.shape for x in equation.invars), tuple(sizes)))
        return 0.0

    total(jax.make_jaxpr(function)(*args).jaxpr, of_equation)
    return found


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_mixer", "tiny_convnext"])
def test_all_members_are_one_batched_product(name):
    """Forward and backward, a stack has as many matrix products as one member, each batched over the members."""
    network = make_network(FAMILIES[name], 3, SHAPE)
    params, batch_stats = weight_shapes(network)
    images, count = jnp.zeros((2, *SHAPE)), 5

    def loss(params):
        return jnp.square(network.train(params, batch_stats, images)[0][0]).sum()

    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), params)
    one, all_members = products(jax.grad(loss), params), products(jax.vmap(jax.grad(loss)), stacked)
    assert len(one) == len(all_members) >= 20
    without = [shapes for shapes, sizes in all_members if count not in sizes]
    # but the one product with the images, which all members share
    assert all((2, 2, 2, 16) in shapes or (2, 8, 8, 1) in shapes for shapes in without) and len(without) <= 2


def random_weights(network):
    """Arrays of all parameters and statistics, at scales that keep activations moderate."""
    rng = np.random.default_rng(0)

    def drawn(name, shape):
        if name.endswith(("scale", "var", "gamma")):
            return rng.uniform(0.5, 1.5, shape)
        return rng.normal(0, np.prod(shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.2, shape)

    kinds = weight_shapes(network)
    return tuple({k: np.float32(drawn(k, x.shape)) for k, x in kind.items()} for kind in kinds)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_efficient", pytest.param("tiny_convnext", marks=pytest.mark.slow)])
def test_bfloat16_is_nearly_float32(name):
    plain, rounded = (make_network(FAMILIES[name], 3, SHAPE, dtype) for dtype in ("float32", "bfloat16"))
    weights, images = random_weights(plain), np.random.default_rng(1).normal(size=(4, *SHAPE)).astype(np.float32)
    outputs = (jax.jit(network.predict)(*weights, images) for network in (plain, rounded))
    for exact, coarse in zip(*outputs, strict=True):
        assert exact.dtype == coarse.dtype == jnp.float32
        assert 1e-5 < jnp.linalg.norm(exact - coarse) / jnp.linalg.norm(exact) < 0.03


def use(config, method, *names):
    config.method, config.num_networks, config.pretrain_epochs = method, len(names), int(method != "orc")
    config.teacher, config.assistants, config.student = names[0], ",".join(names[1:-1]), names[-1]
    config.optimizer, config.learning_rate = "adamw", 0.01
    return config


def assert_all_learn(config, toy):
    """Three steps change every parameter of every member, to finite values.

    Where a classifier or the end of a branch starts at 0, what is before it has no gradient in the first.
    """
    stepper = Stepper(build_run(config, toy))
    start = stepper.init()
    end = run_steps(stepper, 3, start)
    for i in range(stepper.run.spec.size):
        before, after = (stepper.member(state, i).params for state in (start, end))
        assert all(np.isfinite(x).all() for x in after.values())
        assert [name for name, x in after.items() if np.array_equal(x, before[name])] == []


ONE_FAMILY = ["tiny_vit", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "tiny_vit")]


@pytest.mark.parametrize("name", ONE_FAMILY)
def test_an_orc_step_beside_a_convolutional_network(name, config, toy):
    """Of a stack of two and another network."""
    assert_all_learn(use(config, "orc", name, name, "tiny_b"), toy)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_orc_step_of_one_stack(name, config, toy):
    """Of three, the fewest that ORC has."""
    assert_all_learn(use(config, "orc", name, name, name), toy)


QUICK = ("pcl",)  # of those that share layers
OF_MAPS = ("at", "sp", "fitnets", "vid", "nst", "reviewkd", "ofd", "simkd", "ft", "ab", "fsp")  # which tokens are not


@pytest.mark.parametrize("method", OF_MAPS)
def test_methods_that_compare_maps_refuse_transformers(method, config, toy):
    with pytest.raises(UserError, match=rf"^config\.teacher: tiny_vit has no feature points, whose maps {method} comp"):
        build_run(use(config, method, "tiny_vit", "tiny_vit", "tiny_vit"), toy)


@pytest.mark.parametrize(
    "method", [pytest.param(x, marks=[pytest.mark.slow] * (x not in QUICK)) for x in METHODS if x not in OF_MAPS]
)
def test_every_other_method_trains_transformers(method, config, toy):
    use(config, method, "tiny_vit", "tiny_vit", "tiny_vit").crop_padding = 1
    stepper = Stepper(build_run(config, toy))
    start = stepper.init()
    end = run_steps(stepper, 1, start)
    before, after = (stepper.member(state, 2).params for state in (start, end))
    assert all(np.isfinite(x).all() for x in after.values())
    assert not np.array_equal(before["blocks.0.attn.qkv.kernel"], after["blocks.0.attn.qkv.kernel"])
    if method in ("pcl", "one", "cl_ilr"):  # their peers share all but the last block
        stack = end.stacks["tiny_vit"].params
        equal = {name for name, x in stack.items() if np.array_equal(x[0], x[1])}
        own = {name for name in stack if name.startswith(("blocks.1.", "norm.", "head."))}
        assert {name for name in stack if name not in own} <= equal
        assert "blocks.1.attn.qkv.kernel" not in equal


def test_early_features_are_the_mean_of_tokens():
    network = make_network(VIT, 3, SHAPE, early=True)
    weights, images = random_weights(network), np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)

    @jax.jit
    def both(images):
        module = network.module(*weights)
        first = jnp.broadcast_to(module.cls_token[...], (2, 1, 8))
        tokens = jnp.concatenate([first, module.patch_embed(images)], 1) + module.pos_embed[...]
        return network.predict(*weights, images)[2]["early"], module.blocks[0](tokens).mean(1)

    np.testing.assert_allclose(*both(images), rtol=1e-5, atol=1e-6)


def test_layers_and_kernels_of_a_transformer():
    """The class token and the position embeddings are of the first layer, the last norm of the last block."""
    network = make_network(VIT, 3, SHAPE)
    layers = layers_of(network, SHAPE, optim.is_kernel)
    of = {block_of(name): layer for name, layer in layers.items()}
    assert of == {
        "patch_embed": 0,
        "cls_token": 0,
        "pos_embed": 0,
        "blocks.0": 1,
        "blocks.1": 2,
        "norm": 2,
        "head": 3,
    }
    decays = {name for name, is_one in optim.kernels(weight_shapes(network)[0]).items() if is_one}
    assert decays == {name for name in layers if name.endswith("kernel")} and len(decays) == 2 + 2 * 4
    gammas = optim.kernels(weight_shapes(make_network(FAMILIES["tiny_convnext"], 3, SHAPE))[0])
    assert not gammas["stages.0.blocks.0.gamma"] and gammas["stages.1.downsample.1.kernel"]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("layer1.0.downsample.1.kernel", "layer1.0"),
        ("block1.layer.0.conv1.kernel", "block1.layer.0"),
        ("stages.1.blocks.2.mlp.fc1.bias", "stages.1.blocks.2"),
        ("stages.1.downsample.1.bias", "stages.1"),
        ("blocks.2.1.conv_pw.kernel", "blocks.2.1"),
        ("features.3.conv.0.0.kernel", "features.3"),
        ("head.norm.scale", "head"),
        ("cls_token", "cls_token"),
    ],
)
def test_the_block_of_a_parameter(name, block):
    assert block_of(name) == block


def test_frozen_backbone_of_a_transformer(config, toy):
    """All but the classifier stays, whatever the weight decay."""
    config.frozen = "backbone"
    run = build_run(use(config, "independent", "tiny_vit"), toy)
    of = weight_shapes(run.spec.stacks[0].network)[0]
    assert set(of) - set(run.setup.frozen["tiny_vit"]) == {"head.kernel", "head.bias"}
