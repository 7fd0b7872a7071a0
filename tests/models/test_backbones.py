"""Every backbone against PyTorch: imported weights, logits, and a training step of a stacked pool of two.

The PyTorch networks (`torch_models`) are written from the published structures alone. Two of them with random weights
and running statistics are imported as the members of one pool. Their logits in evaluation mode must be PyTorch's, and
so must the statistics and the gradients of one training step of the pool.

For the training step ReLU, ReLU6 and max-pooling are replaced by smooth functions, in both: an activation within
rounding of a corner falls on either side of it, which changes gradients by a percent, and among millions of them some
always do.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from orc_jax.data.types import Dataset, Images
from orc_jax.deploy.import_torch import convert
from orc_jax.deploy.torch_layout import from_torch, torch_name
from orc_jax.models import LARGE, MODELS, PLANES, RESNETS, RESNETS_X4, WRNS, mobilenetv2
from orc_jax.models.network import make_network
from orc_jax.pool import Pool, StackState, make_spec
from orc_jax.step import init_state, make_train_step
from orc_jax.testing import build_run
from orc_jax.verbs import predict

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("tests.torch_models")
torch.set_num_threads(1)

BATCH = 4
MEAN, STD = 0.5, 0.25


def photos(size, classes):
    """Images with coarse structure, so that networks tell them apart whatever their weights."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (BATCH, 4, 4, 3)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    images = np.clip(coarse + rng.normal(0, 30, coarse.shape), 0, 255).astype(np.uint8)
    return Images(images, rng.integers(0, classes, BATCH).astype(np.int32))


def normalized(images):
    return ((images / 255.0 - MEAN) / STD).astype(np.float32)


def torch_images(data):
    return torch.tensor(normalized(data.images)).permute(0, 3, 1, 2)


def torch_step(network, data):
    """Gradients and moved statistics of a step in training mode, in double precision: the error is ours alone."""
    network.train().double()
    labels = torch.tensor(data.labels, dtype=torch.long)
    torch.nn.functional.cross_entropy(network(torch_images(data).double())[0], labels).backward()
    grads = {name: value.grad.numpy() for name, value in network.named_parameters()}
    return grads, {name: value.numpy() for name, value in network.state_dict().items()}


def relative_errors(ours, theirs):
    """Of each array, the norm of its error over its own. Arrays that are nothing but rounding, such as the gradients of
    biases before a normalisation, count by their share in the norm of all."""
    theirs = {name: from_torch(theirs[torch_name(name)]) for name in ours}
    total = np.sqrt(sum(np.square(value).sum() for value in theirs.values()))
    return {
        name: np.linalg.norm(ours[name] - value) / max(np.linalg.norm(value), 0.05 * total)
        for name, value in theirs.items()
    }


def smooth(monkeypatch):
    """Replaces the activations by functions without corners, here and in PyTorch."""
    make_network.cache_clear()  # those that are made keep theirs
    monkeypatch.setattr(nnx, "relu", nnx.silu)
    monkeypatch.setattr(mobilenetv2, "relu6", lambda x: 6 * nnx.sigmoid(x - 3))
    monkeypatch.setattr(torch.nn.functional, "relu", lambda x, inplace=False: x * torch.sigmoid(x))
    monkeypatch.setattr(torch.nn.functional, "hardtanh", lambda x, *_: 6 * torch.sigmoid(x - 3))  # ReLU6
    monkeypatch.setattr(nnx, "max_pool", nnx.avg_pool)
    monkeypatch.setattr(
        torch.nn.functional, "max_pool2d", lambda x, *args, **_: torch.nn.functional.avg_pool2d(x, *args[:3])
    )


def run_once(function, *args, compiled):
    """Networks of one family share the shapes of their layers: run layer by layer, they share compilations too."""
    return jax.jit(function)(*args) if compiled else function(*args)


# One network of each structure; those that differ in numbers of blocks and channels alone, or that put together what
# others have (a stem for large images, bottlenecks), run with `-m slow`; and DenseNet, which test_export.py compares.
QUICK = {"resnet8", "wrn_16_1", "ResNet18", "vgg8", "plane2", "plane10"}
QUICK |= {"switokd_wrn_16_1", "ShuffleV1", "resnet10"}
CASES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in torch_models.MODELS]


def imported(name, networks, size):
    """The weights of PyTorch networks as those of a stack: (params, batch_stats)."""
    members = [convert({k: v.numpy() for k, v in net.state_dict().items()}, name, size)[:2] for net in networks]
    return tuple(jax.tree.map(lambda *x: np.stack(x), *kind) for kind in zip(*members, strict=True))


def assert_predicts(ours, network, data):
    """Logits and features are those of a PyTorch network in evaluation mode."""
    network.eval()
    with torch.no_grad():
        theirs = network(torch_images(data))
    for x, y in zip(ours, theirs, strict=True):
        assert np.linalg.norm(np.asarray(x) - y.numpy()) < 1e-4 * np.linalg.norm(y.numpy())


@pytest.fixture(autouse=True)
def made_anew():
    """A network keeps the activations that it was made with."""
    yield
    make_network.cache_clear()


@pytest.mark.parametrize("name", CASES)
def test_two_members_equal_pytorch(name, config, monkeypatch):
    compiled = name not in {**RESNETS, **RESNETS_X4, **WRNS, "resnet110_bottleneck": None}
    size, classes = (64 if name in LARGE else 32), (20 if name in PLANES else 7)
    shape = (size, size, 3)
    data = photos(size, classes)
    networks = [torch_models.randomize(torch_models.MODELS[name](classes), seed) for seed in (0, 1)]
    params, batch_stats = imported(name, networks, size)
    stack = StackState(params=params, batch_stats=batch_stats, opt_state=())
    pool = Pool(make_spec([name] * 2, num_classes=classes, image_shape=shape), {name: stack})
    outputs = run_once(predict, pool, normalized(data.images), compiled=compiled)
    for i, network in enumerate(networks):
        assert_predicts((outputs.logits[i], outputs.features[name][i]), network, data)

    smooth(monkeypatch)
    config.method, config.teacher, config.student, config.num_networks = "independent", name, name, 2
    config.assistants, config.batch_size, config.weight_decay, config.lr_multipliers = "copies", BATCH, 0.0, ""
    dataset = Dataset("photos", data, data, tuple("x" * classes), shape, (MEAN,) * 3, (STD,) * 3)
    run = build_run(config, dataset, axis_name=None)
    state = jax.eval_shape(lambda: init_state(run.setup, run.method, 0))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    state.stacks[name] = state.stacks[name].replace(params=params, batch_stats=batch_stats)
    step = make_train_step(run.setup, run.method.iterate)
    stack = run_once(step, state, None, data, compiled=compiled).stacks[name]
    for i, network in enumerate(networks):
        grads, moved = torch_step(network, data)
        gradients = stack.opt_state[-1].trace  # the momentum of the first step
        for ours, theirs in ((gradients, grads), (stack.batch_stats, moved)):
            errors = relative_errors({k: np.asarray(v[i]) for k, v in ours.items()}, theirs)
            assert not {k: v for k, v in errors.items() if not v < 1e-4}
    for k, value in params.items():
        stepped = value - config.learning_rate * np.asarray(gradients[k])
        np.testing.assert_allclose(stack.params[k], stepped, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [64, 48])
def test_a_vgg_of_larger_images(size):
    """Images of 64 pixels, and only those, get a fourth pooling."""
    data, network = photos(size, 7), torch_models.randomize(torch_models.MODELS["vgg8"](7), 0)
    params, batch_stats = imported("vgg8", [network], size)
    ours = make_network(MODELS["vgg8"], 7, (size, size, 3))
    weights = jax.tree.map(lambda x: x[0], (params, batch_stats))
    assert_predicts(jax.jit(ours.predict)(*weights, normalized(data.images)), network, data)


@pytest.mark.slow
def test_networks_of_three_families_in_one_pool(config):
    """An iteration of ORC with a VGG as pivot teacher, a plain network and a wide ResNet; all of them learn."""
    config.teacher, config.assistants, config.student, config.num_networks = "vgg8", "plane2", "wrn_16_1", 3
    config.batch_size, config.orc.temporary_teacher_logits = BATCH, "before"
    data = photos(32, 20)
    dataset = Dataset("photos", data, data, tuple("x" * 20), (32, 32, 3), (MEAN,) * 3, (STD,) * 3)
    run = build_run(config, dataset, axis_name=None)
    state = init_state(run.setup, run.method, 0)
    after = run_once(make_train_step(run.setup, run.method.iterate), state, None, data, compiled=True)
    for name, stack in after.stacks.items():
        moved = [k for k, v in stack.params.items() if not np.array_equal(v, state.stacks[name].params[k])]
        assert len(moved) > 0.9 * len(stack.params), name
    assert np.isfinite(after.totals["loss"]).all() and after.totals["promoted"].sum() == 1
