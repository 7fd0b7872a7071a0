"""What a method or a network has to keep, as functions for tests of one's own; the tests of this package call them too.

    def test_nobody_teaches():
        testing.assert_same_student(config(weight=0.0), config(method="independent"))

All work on a small set (`toy_dataset`) unless another is given, and raise AssertionError. What is of one's own is named
in the config as everywhere: `config.method = "my_module:my_method"`. PyTorch is needed by what compares with it alone.
"""

import copy
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from orc_jax import parallel, training
from orc_jax.config import default, resolve
from orc_jax.data.types import Dataset, Images
from orc_jax.deploy.torch_layout import COUNTER, state_dict
from orc_jax.models.network import Params
from orc_jax.pool import Pool, StackState
from orc_jax.run import Run, abstract_state, build
from orc_jax.step import TrainState, augment, init_state, make_train_step
from orc_jax.workdir import checkpoint, metrics

STEPS = 3  # that are compared
Network = Any  # a torch.nn.Module


def toy_dataset() -> Dataset:
    """Three classes of 8x8 grey images, told apart by the brightest third: learnt within a few steps."""
    rng = np.random.default_rng(0)
    labels = np.arange(120, dtype=np.int32) % 3
    images = rng.integers(0, 120, (120, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 120
    train, test = Images(images[:90], labels[:90]), Images(images[90:], labels[90:])
    return Dataset("toy", train, test, ("top", "middle", "bottom"), (8, 8, 1), mean=(0.35,), std=(0.25,))


def small_config(**fields: Any) -> ConfigDict:
    """The default config with a run of two epochs on a small set, and `fields`. Nothing is augmented."""
    config = default()
    config.update(dataset="toy", batch_size=16, eval_batch_size=16, num_epochs=2, pretrain_epochs=1)
    config.update(crop_padding=0, flip=False, log_every_steps=1)
    config.update(fields)
    return config


def build_run(
    config: ConfigDict, dataset: Dataset | None = None, num_devices: int = 1, axis_name: str | None = parallel.AXIS
) -> Run:
    """The run of a config on the first devices; `axis_name` is as in `orc_jax.run.build`.

    Raises:
        RuntimeError: if there are not so many devices.
    """
    devices = jax.local_devices()[:num_devices]
    if len(devices) < num_devices:
        raise RuntimeError(
            f"needed are {num_devices} devices, and there are {len(devices)}. On a CPU they are made by "
            f'jax.config.update("jax_num_cpu_devices", {num_devices}) before JAX is used, as in conftest.py'
        )
    return build(resolve(config, num_devices), dataset or toy_dataset(), devices, axis_name)


class Stepper:
    """The compiled training step of a run, with its data on its devices: `state = stepper(state, indices)`."""

    def __init__(self, run: Run):
        self.run = run
        step = make_train_step(run.setup, run.method.iterate)
        self.train_step = parallel.DataParallel(step, run.devices, donate=False)
        self.data = jax.device_put(run.dataset.train, run.sharding)
        self.init_state = parallel.once(functools.partial(init_state, run.setup, run.method))

    def init(self, seed: int = 0) -> TrainState:
        """The state before the first step."""
        return jax.device_put(self.init_state(seed), self.run.sharding)

    def __call__(self, state: TrainState, indices: np.ndarray) -> TrainState:
        """The state after a step on the training examples `indices`, int32 `[batch]`."""
        return self.train_step(state, self.data, parallel.shard(indices, len(self.run.devices)))

    def pool(self, state: TrainState) -> Pool:
        """The pool of a state."""
        return Pool(spec=self.run.spec, stacks=state.stacks)

    def member(self, state: TrainState, i: int) -> StackState:
        """The arrays of one member, without the member axis."""
        return self.pool(state).member(i)


def batches(count: int, batch_size: int, num_examples: int, seed: int = 0) -> list[np.ndarray]:
    """Random batches of indices."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(num_examples)[:batch_size].astype(np.int32) for _ in range(count)]


def run_steps(stepper: Stepper, count: int = STEPS, state: TrainState | None = None) -> TrainState:
    """The state after some steps on random batches, from `state` or from the start."""
    state = state or stepper.init()
    for indices in batches(count, stepper.run.config.batch_size, stepper.run.dataset.num_train):
        state = stepper(state, indices)
    return state


def assert_close(actual: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Two trees of arrays are nearly the same."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def assert_identical(actual: Any, expected: Any) -> None:
    """Two trees of arrays are the same, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def latest_state(workdir: Path, run: Run) -> TrainState:
    """The state in the latest checkpoint of `run` in `workdir`."""
    with checkpoint.open_manager(workdir, create=False) as manager:
        return checkpoint.restore(manager, checkpoint.find_step(manager, "latest"), abstract_state(run), run.sharding)


def student_of(config: ConfigDict, dataset: Dataset | None = None) -> tuple[Params, Params]:
    """The target student of a run after some steps: its parameters and statistics."""
    stepper = Stepper(build_run(config, dataset))
    student = stepper.member(run_steps(stepper), stepper.run.spec.size - 1)
    return student.params, student.batch_stats


def assert_same_student(config: ConfigDict, other: ConfigDict, dataset: Dataset | None = None) -> None:
    """A collapse law: the runs of two configs train the same target student, up to rounding.

    Where nobody teaches, for instance, a method is independent training; with one teacher it may be another method.
    """
    assert_close(student_of(config, dataset), student_of(other, dataset), rtol=1e-5, atol=1e-6)


def assert_devices_agree(config: ConfigDict, dataset: Dataset | None = None, num_devices: int = 4) -> None:
    """One device and several end with the same members, optimizers, heads and metrics, up to rounding.

    What a method decides has to be a function of the global batch (`Context.mean` and `Context.gather`).

    Raises:
        RuntimeError: as `build_run`.
    """
    one, several = (run_steps(Stepper(build_run(config, dataset, count))) for count in (1, num_devices))
    assert_close(one.stacks, several.stacks, rtol=2e-4, atol=2e-5)
    assert_close(one.totals, several.totals)
    parallel.assert_replicated(several)


def assert_resumes(config: ConfigDict, folder: Path, dataset: Dataset | None = None) -> None:
    """A run that goes on from its first checkpoint ends as the one that was not interrupted, bit for bit on a CPU.

    Both are kept below `folder`. The config needs at least two epochs.
    """
    resolved, dataset, quiet = resolve(config), dataset or toy_dataset(), Console(quiet=True)
    whole, resumed = folder / "whole", folder / "resumed"
    training.train(resolved, whole, quiet, dataset=dataset)
    shutil.copytree(whole, resumed)
    _, *later = sorted((resumed / checkpoint.CHECKPOINTS).glob("[0-9]*"), key=lambda path: int(path.name))
    assert later, "the run has a single checkpoint, so there is nothing to go on from"
    for path in later:
        shutil.rmtree(path)
    training.train(resolved, resumed, quiet, dataset=dataset)
    run = build(resolved, dataset, jax.local_devices())
    assert_identical(latest_state(resumed, run), latest_state(whole, run))
    logs = [(workdir / metrics.METRICS).read_bytes() for workdir in (resumed, whole)]
    assert logs[0] == logs[1], "the metrics that were logged differ"


def assert_equals_torch(
    config: ConfigDict,
    networks: Mapping[str, Callable[[int, tuple[int, int, int]], Network]],
    loop: Callable[[Sequence[Network], Sequence[Any], Sequence[Any], Any], object],
    dataset: Dataset | None = None,
) -> None:
    """A method does in three steps what a plain loop in PyTorch does, from the same initial networks.

    Args:
        config: of the run.
        networks: by architecture, the same network in PyTorch: (classes, image shape) -> module, whose parameters have
            the names of the Flax one's as PyTorch writes them, and which returns logits, or logits and features.
        loop: makes one iteration: (networks in member order, their optimizers, the normalised images `[batch,
            channels, height, width]` that each sees, labels).
        dataset: to train on.
    """
    both = Comparison(Stepper(build_run(config, dataset)), networks)
    for _, views, labels in both:
        loop(both.nets, both.optimizers, views, labels)
    both.check()


class Comparison:
    """A run beside a PyTorch loop, for what `assert_equals_torch` does not see: heads, other optimizers, decisions.

    `change(stepper, state)`, if given, is made to the initial state of both.
    """

    def __init__(
        self,
        stepper: Stepper,
        networks: Mapping[str, Callable[[int, tuple[int, int, int]], Network]],
        change: Callable[[Stepper, TrainState], TrainState] | None = None,
    ):
        self.stepper, self.networks = stepper, networks
        start = stepper.init()
        self.start = self.state = jax.device_get(change(stepper, start) if change else start)
        self.size = stepper.run.spec.size
        self.nets = [self.to_torch(i) for i in range(self.size)]
        self.optimizers = [self.optimizer(net.parameters()) for net in self.nets]
        self.scores = {"loss": np.zeros(self.size), "accuracy": np.zeros(self.size)}

    def member(self, state: TrainState, i: int) -> StackState:
        """One member of a state, which NumPy takes faster than JAX compiles."""
        return self.stepper.member(jax.device_get(state), i)

    def to_torch(self, i: int) -> Network:
        """The PyTorch network with the initial parameters and statistics of a member."""
        import torch

        member, dataset = self.member(self.start, i), self.stepper.run.dataset
        net = self.networks[self.stepper.run.spec.architectures[i]](dataset.num_classes, dataset.image_shape)
        arrays = state_dict(member.params, member.batch_stats)
        net.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
        return net.train()

    def optimizer(self, parameters: Any, lr: float | None = None) -> Any:
        """PyTorch's SGD with the run's numbers, at the rate `lr` if it is given."""
        import torch

        config = self.stepper.run.config
        decays = {"momentum": config.momentum, "weight_decay": config.weight_decay, "nesterov": config.nesterov}
        return torch.optim.SGD(parameters, lr or config.learning_rate, **decays)

    def __iter__(self) -> Iterator[tuple[int, list[Any], Any]]:
        """Makes some steps; before each, yields the step, each network's view of the batch, and the labels."""
        import torch

        run = self.stepper.run
        setup, dataset = run.setup._replace(axis_name=None), run.dataset
        train: Any = dataset.train
        mean, std = (np.asarray(constants, np.float32) for constants in (dataset.mean, dataset.std))
        augmented = jax.jit(lambda seed, step, examples: augment(setup, seed, step, examples))
        for step, indices in enumerate(batches(STEPS, run.config.batch_size, dataset.num_train)):
            examples = Images(train.images[indices], train.labels[indices])
            images = np.asarray(augmented(self.state.seed, self.state.step, examples))
            images = images if setup.views > 1 else np.stack([images] * self.size)
            normalised = (images / np.float32(255) - mean) / std
            views = [torch.tensor(view).permute(0, 3, 1, 2).float() for view in normalised]
            labels = torch.tensor(examples.labels).long()
            self.score(views, labels)
            yield step, views, labels
            self.state = self.stepper(self.state, indices)

    def score(self, views: Sequence[Any], labels: Any) -> None:
        """Every member on the batch as it is now: in training mode, but if it is frozen."""
        import torch

        for i, (net, view) in enumerate(zip(self.nets, views, strict=True)):
            with torch.no_grad():
                out = copy.deepcopy(net).train(i not in self.stepper.run.method.frozen)(view)
            logits = out[0] if isinstance(out, tuple) else out
            self.scores["loss"][i] += torch.nn.functional.cross_entropy(logits, labels)
            self.scores["accuracy"][i] += (logits.argmax(1) == labels).float().mean()

    def check(self) -> None:
        """Both have the same networks and scores, and all that learn have moved."""
        for name, values in self.scores.items():
            np.testing.assert_allclose(self.state.totals[name], values, rtol=1e-4, err_msg=name)
        for i, net in enumerate(self.nets):
            before, after = (self.member(state, i).params for state in (self.start, self.state))
            assert_same_network(self.member(self.state, i), net)
            if i not in self.stepper.run.method.frozen:
                assert max(np.abs(after[name] - before[name]).max() for name in before) > 1e-4, f"member {i} is still"


def assert_same_network(member: StackState, net: Network) -> None:
    """A member and a PyTorch network have the same parameters and statistics, up to rounding."""
    expected = state_dict(member.params, member.batch_stats)
    for name, value in net.state_dict().items():
        if not name.endswith(COUNTER):
            np.testing.assert_allclose(expected[name], value, rtol=1e-4, atol=2e-6, err_msg=name)
