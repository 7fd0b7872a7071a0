"""Members to deploy, with random weights, and what they have to compute."""

import jax
import numpy as np
import torch

from orc_jax import pool
from orc_jax.data.augment import normalize
from orc_jax.deploy.import_torch import convert
from orc_jax.deploy.member import Member
from orc_jax.deploy.torch_file import read_state_dicts
from orc_jax.deploy.torch_match import candidates
from orc_jax.models import MODELS
from orc_jax.pool import Pool, StackState, make_spec
from orc_jax.verbs import predict
from orc_jax.workdir import checkpoint, record
from orc_jax.workdir.record import Record
from tests import torch_models

torch.set_num_threads(1)
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def photos(size, count=4):
    """Images with coarse structure, so that networks tell them apart whatever their weights."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return np.clip(coarse + rng.normal(0, 30, coarse.shape), 0, 255).astype(np.uint8)


def network_of(name, classes=7):
    """A network in PyTorch, with random weights and statistics."""
    return torch_models.randomize(torch_models.MODELS[name](classes), 0)


def state_of(network):
    """Its state dict, in NumPy."""
    return {name: value.numpy() for name, value in network.state_dict().items()}


def read_arrays(path):
    """The arrays of the largest state dict in a file, without what stands before all names."""
    (arrays,) = candidates(read_state_dicts(path), ()).values()
    return arrays


def member_of(network, name, size):
    """A network of PyTorch as a member."""
    params, batch_stats, classes, shape = convert(state_of(network), name, size)
    about = {"class_names": CLASSES, "image_shape": shape, "mean": MEAN, "std": STD, "crop": None}
    return Member(f"0_{name}", name, MODELS[name], 7, (params, batch_stats), classes, **about)


def evaluated(member, images):
    """The logits of uint8 images in an evaluation of the member's pool."""
    name = member.architecture
    spec = make_spec(
        [name], {name: member.model}, num_classes=member.num_classes, image_shape=member.image_shape, axis_name=None
    )
    params, batch_stats = jax.tree.map(lambda x: x[None], member.weights)
    one = Pool(spec=spec, stacks={name: StackState(params=params, batch_stats=batch_stats, opt_state=())})
    images = normalize(images, member.mean, member.std)
    return np.asarray(jax.jit(lambda one, images: predict(one, images).logits[0])(one, images))


def by_pytorch(member, arrays, images):
    """The logits of a state dict in the PyTorch definition."""
    network = torch_models.MODELS[member.architecture](member.num_classes)
    network.load_state_dict(arrays, strict=True)
    network.eval()
    inputs = ((images / 255 - np.array(member.mean)) / np.array(member.std)).astype(np.float32)
    with torch.no_grad():
        return network(torch.tensor(inputs).permute(0, 3, 1, 2))[0].numpy()


def assert_same_logits(actual, expected):
    """Equal up to rounding, and float32."""
    assert actual.shape == expected.shape and actual.dtype == np.float32
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


def save_pool(workdir, names, models=None, **changes):
    """A run of tiny networks for 8x8 grey images, as far as checkpoints of it go; returns its members' arrays."""
    shape = (8, 8, 1)
    there = Record(
        config={"dataset": "toy"},
        architectures=tuple(names),
        num_classes=3,
        class_names=("a", "b", "c"),
        num_train=90,
        image_shape=shape,
        mean=(0.4,),
        std=(0.2,),
        eval_crop=None,
        versions={},
    )
    spec = make_spec(names, models or MODELS, num_classes=3, image_shape=shape)
    weights = jax.device_get(pool.init(spec, 0))
    stacks = {name: {"params": params, "batch_stats": stats} for name, (params, stats) in weights.items()}
    with checkpoint.open_manager(workdir, create=True) as manager:
        for step, top1 in ((3, 0.9), (8, 0.5)):
            checkpoint.save(manager, step, {"stacks": stacks}, there, selected_by=top1)
            checkpoint.finish(manager)
    record.write(workdir, there._replace(**changes))
    rows = {stack.name: stack.members for stack in spec.stacks}
    return [jax.tree.map(lambda x, i=i: x[rows[names[i]].index(i)], weights[names[i]]) for i in range(len(names))]


def diverge(workdir, member, step):
    """A checkpoint of `step` in which a member's weights are not numbers."""
    there = record.require(workdir)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trained = checkpoint.restore_networks(workdir, there, "latest", device, {})
    state = trained.pool.member(member)
    state = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
    stacks = trained.pool.with_weights({member: state}).stacks
    arrays = {name: {"params": stack.params, "batch_stats": stack.batch_stats} for name, stack in stacks.items()}
    with checkpoint.open_manager(workdir, create=True) as manager:
        checkpoint.save(manager, step, {"stacks": arrays}, there)
        checkpoint.finish(manager)
