"""Whatever comes in: random configs, scores, labels and files. What is wrong gets a UserError, and nothing else."""

import contextlib
import json
import pickle
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orc_jax import checkpoint, logs, parallel, train
from orc_jax import config as configs
from orc_jax.data import sets
from orc_jax.data.sets import Images
from orc_jax.errors import UserError
from orc_jax.methods import METHODS
from orc_jax.roles import feedback_indices, feedback_shares, top_k_mask
from orc_jax.run import abstract_state, build
from orc_jax.step import make_train_step
from orc_jax.torch_file import read_arrays

# Compiling takes its time, and the fixtures of the tests change nothing from example to example.
relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    database=None,
    derandomize=True,
)
LOSSES = st.one_of(
    st.floats(0, 50, width=32),
    st.sampled_from([0.0, 1.0, 1.0, np.nan, np.inf, -np.inf, 3.4e38, 1e-45]),
)


def arrays_of(*shape):
    size = int(np.prod(shape))
    return st.lists(LOSSES, min_size=size, max_size=size).map(lambda x: np.float32(x).reshape(shape))


@settings(relaxed, max_examples=60)
@given(st.sampled_from([1, 2, 5]).flatmap(lambda n: st.tuples(arrays_of(n), st.integers(1, n))))
def test_exactly_k_are_promoted_and_the_finite_first(losses_and_k):
    losses, k = losses_and_k
    mask = np.asarray(top_k_mask(losses, k))
    assert mask.sum() == k
    finite = np.isfinite(losses)
    assert mask[finite].sum() == min(k, finite.sum())
    if finite[mask].all() and finite[~mask].any():
        assert losses[mask].max() <= losses[~mask & finite].min()


@settings(relaxed, max_examples=60)
@given(st.sampled_from([1, 2, 5]).flatmap(arrays_of), st.sampled_from([1, 7, 64]), st.integers(0, 2**31))
def test_shares_sum_to_the_batch_and_samples_are_in_it(scores, size, seed):
    shares = np.asarray(feedback_shares(scores, size))
    assert shares.sum() == size and shares.min() >= 0
    if np.isfinite(scores).any():
        assert (shares[~np.isfinite(scores)] == 0).all()
    rng = np.random.default_rng(seed)
    losses = rng.choice([0.0, 0.5, 0.5, 2.0, np.nan, np.inf, -np.inf], (len(scores), 64)).astype(np.float32)
    indices = np.asarray(feedback_indices(losses, shares, size))
    assert indices.shape == (size,) and indices.min() >= 0 and indices.max() < 64
    ends = np.cumsum(shares)
    for first, last in zip(ends - shares, ends, strict=True):
        assert len(set(indices[first:last])) == last - first  # a student hands back no sample twice


FLOATS = st.sampled_from([0.0, 0.5, 1.0, 4.0, -1.0, 1e-9, 1e30, np.nan, np.inf, -np.inf])
INTEGERS = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 16, 90, 91, -1, -5, 10**9])
NAMES = st.sampled_from(["tiny_a", "tiny_b", "tiny_a,tiny_b", "ladder", "copies", "", ",", "orc", "mean", "batch", "x"])
SMALL_POOLS = {  # most examples should get beyond the first check
    "num_networks": st.sampled_from([1, 2, 3, 4]),
    "teacher": st.sampled_from(["tiny_a", "tiny_b"]),
    "student": st.sampled_from(["tiny_a", "tiny_b"]),
    "assistants": st.sampled_from(["copies", "copies", "ladder", "tiny_a", "tiny_a,tiny_b"]),
    "method": st.sampled_from(list(METHODS)),
    "batch_size": st.sampled_from([4, 8, 16]),
    "num_temporary_teachers": st.sampled_from([1, 1, 2]),
    "num_epochs": st.just(1),
    "pretrain_epochs": st.sampled_from([0, 1]),
}


def by_type(value):
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return INTEGERS
    if isinstance(value, float):
        return FLOATS
    if isinstance(value, str):
        return NAMES
    return st.lists(FLOATS, max_size=3).map(tuple)


def a_choice(field, value):
    """Valid values of fields that have few of them, or anything of the field's type."""
    valid = [st.just(value)] * 2 + ([st.sampled_from(configs.CHOICES[field])] if field in configs.CHOICES else [])
    return st.one_of(*valid, by_type(value))


@st.composite
def changes(draw):
    fields = {name: draw(strategy) for name, strategy in SMALL_POOLS.items()}
    everything = configs.flat(configs.default().to_dict())
    shared = [name for name in everything if "." not in name or name.startswith("stream.")]
    own = [name for name in everything if name.startswith(fields["method"] + ".")]
    names = draw(st.lists(st.sampled_from(shared + own * 3), max_size=3, unique=True))
    return fields | {name: draw(a_choice(name, everything[name])) for name in names if name not in SMALL_POOLS}


def apply(config, fields):
    for name, value in fields.items():
        group, _, option = name.rpartition(".")
        (config[group] if group else config)[option] = value


def shapes_of_a_step(config, toy):
    """Builds a run and traces its step, as a training would before it compiles; returns the run."""
    configs.validate(config, 4)
    dataset = sets.load(config, print)
    run = build(config, dataset, jax.local_devices(), configs.members(config))
    state = abstract_state(run)
    step = parallel.DataParallel(make_train_step(run.setup, run.method.iterate), run.devices, donate=False)
    batch = jax.ShapeDtypeStruct((4, config.batch_size // 4), np.int32)
    new = jax.eval_shape(step.mapped, state, jax.tree.map(jax.typeof, dataset.train), batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    return run


@settings(relaxed, max_examples=120)
@given(changes())
def test_a_config_is_refused_by_name_or_its_step_can_be_traced(config, toy, toy_set, fields):
    config = config.copy_and_resolve_references()
    apply(config, fields)
    with contextlib.suppress(UserError):
        shapes_of_a_step(config, toy)


@settings(relaxed, max_examples=6)
@given(st.fixed_dictionaries(SMALL_POOLS))
def test_valid_pools_train(config, toy, toy_set, console, tmp_path_factory, fields):
    config = config.copy_and_resolve_references()
    apply(config, fields)
    workdir = tmp_path_factory.mktemp("run") / "run"
    try:
        configs.validate(config, 4)
    except UserError:
        return
    train.train(config, workdir, console)
    assert np.isfinite(list(logs.read_rows(workdir)[-1].values())).all()


def test_enough_of_the_random_configs_are_valid(config, toy, toy_set):
    """That the tests above do not pass because everything is refused."""
    outcomes = []

    @settings(relaxed, max_examples=100)
    @given(changes())
    def collect(fields):
        changed = config.copy_and_resolve_references()
        apply(changed, fields)
        try:
            configs.validate(changed, 4)
            outcomes.append(True)
        except UserError:
            outcomes.append(False)

    collect()
    assert 25 < sum(outcomes) < 90


def a_set(labels, classes=3):
    labels = np.array(labels, np.int32)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 1), np.uint8)
    return [str(i) for i in range(classes)], Images(images, labels), Images(images, labels)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, 1, 2, 3] * 8, "has labels 0 to 3, but only 3 classes"),
        ([0, 1, 2, -1] * 8, "has labels -1 to 2, but only 3 classes"),
        ([], "config.train_split='train' of digits has no example"),
        ([0, 1, 2] * 3, "config.batch_size=16: must be at most the 9 training examples"),
    ],
)
def test_labels_and_sizes_that_do_not_fit(labels, text, config, console, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "_digits", lambda config: a_set(labels))
    config.dataset = "digits"
    with pytest.raises(UserError, match=text):
        train.train(config, tmp_path / "run", console)


@pytest.mark.parametrize(("labels", "classes"), [([0, 2] * 20, 3), ([0] * 40, 1)])
def test_empty_classes_and_sets_of_one_class_train(labels, classes, config, console, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "_digits", lambda config: a_set(labels, classes))
    config.dataset, config.num_epochs, config.pretrain_epochs = "digits", 1, 0
    train.train(config, tmp_path / "run", console)
    last = logs.read_rows(tmp_path / "run")[-1]
    assert np.isfinite(list(last.values())).all()
    assert last["eval/top5/ensemble"] == 1.0  # there are no five classes


def test_a_batch_of_all_examples(config, toy, toy_set, console, tmp_path):
    config.batch_size, config.eval_batch_size = 88, 512  # more than the evaluation set has
    train.train(config, tmp_path / "run", console)


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("files")
    content = {"model": {"fc.weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3}
    torch.save(content, folder / "new.pth")
    torch.save(content, folder / "old.pth", _use_new_zipfile_serialization=False)
    return [(folder / name).read_bytes() for name in ("new.pth", "old.pth")]


@settings(relaxed, max_examples=300)
@given(st.data())
def test_files_with_random_damage_are_read_or_refused(pickled, tmp_path_factory, data):
    original = data.draw(st.sampled_from(pickled))
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content[:cut] if data.draw(st.booleans()) else content)
    with contextlib.suppress(UserError):
        arrays = read_arrays(path)
        assert all(isinstance(value, np.ndarray) for value in arrays.values())


def save_as_zip(path, tensor, **options):
    """A checkpoint of one tensor whose pickle says what a stranger wants it to say."""

    class Named:
        def __init__(self, module, name):
            self.module, self.name = module, name

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value if isinstance(value, tuple) and value and value[0] == "storage" else None

    import io

    import torch

    class Tensor:
        def __reduce__(self):
            storage = ("storage", torch.FloatStorage, "0", "cpu", tensor["count"])
            return torch._utils._rebuild_tensor_v2, (storage, 0, tensor["shape"], tensor["strides"], False, None)

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"fc.weight": Tensor()})
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr(tensor.get("name", "archive/data/0"), bytes(4 * tensor["count"]))


def test_small_files_do_not_become_large_arrays(tmp_path):
    path = tmp_path / "file.pth"
    save_as_zip(path, {"count": 6, "shape": (2, 3), "strides": (3, 1)})
    assert read_arrays(path)["fc.weight"].shape == (2, 3)
    save_as_zip(path, {"count": 6, "shape": (10**7, 10**4), "strides": (0, 0)})
    with pytest.raises(UserError, match="does not fit its storage"):
        read_arrays(path)
    save_as_zip(path, {"count": 10**6, "shape": (10,), "strides": (1,)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed"):
        read_arrays(path)
    # Lists of one list, forty times: two to the fortieth, if every mention is taken for itself.
    nested = []
    for _ in range(40):
        nested = [nested, nested]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": nested}))
    with pytest.raises(UserError, match="holds no state dict"):
        read_arrays(path)


def test_nothing_is_written_where_an_archive_says(tmp_path):
    """Archives are never extracted: a path that leaves them is a name without meaning."""
    path = tmp_path / "in" / "file.pth"
    path.parent.mkdir()
    save_as_zip(path, {"count": 6, "shape": (2, 3), "strides": (3, 1), "name": "../../escaped"})
    with pytest.raises(UserError, match="cannot be read"):
        read_arrays(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "file.pth"]


@settings(relaxed, max_examples=100)
@given(st.data())
def test_descriptions_with_random_damage_are_read_or_refused(config, toy, tmp_path_factory, data):
    run = build(config, toy, jax.local_devices()[:1], ("tiny_a", "tiny_b", "tiny_a", "tiny_b"))
    text = json.dumps(run.description())
    position = data.draw(st.integers(0, len(text)))
    text = text[:position] + data.draw(st.sampled_from(["", "}", "\x00", '"', "null", "[" * 5000]))
    workdir = tmp_path_factory.getbasetemp() / "described"
    workdir.mkdir(exist_ok=True)
    (workdir / checkpoint.DESCRIPTION).write_text(text)
    with contextlib.suppress(UserError):
        assert checkpoint.read_description(workdir) == run.description()
