"""CIFAR's published archives become the sets that TFDS prepares: the same examples, in the same order."""

import hashlib
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.data import sets
from orc_jax.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "tfds" / "cifar100"
RECORDS = {"cifar10": (1, "cifar-10-batches-bin"), "cifar100": (2, "cifar-100-binary")}  # labels, folder


def write_archive(folder, name, splits, class_names):
    """An archive like the published one. Splits are records, uint8 [n, labels + 3072]; returns its SHA-256."""
    prefix = folder / RECORDS[name][1]
    prefix.mkdir(parents=True)
    for file, records in splits.items():
        records.tofile(prefix / file)
    for file, names in class_names.items():
        (prefix / file).write_text("\n".join(names) + "\n\n")
    archive = folder / f"cifar-{name[5:]}-binary.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(prefix, prefix.name)
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def published(monkeypatch, checksum):
    """From here on the published archives are those of that checksum."""
    tfds = pytest.importorskip("tensorflow_datasets")
    infos = property(lambda self: dict.fromkeys([self._cifar_info.url], type("Info", (), {"checksum": checksum})()))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "url_infos", infos)


def load(name, folder, **fields):
    config = configs.default()
    config.update(dataset=name, data_dir=str(folder), batch_size=2, **fields)
    return sets.load(config, print)


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("ORC_JAX_CACHE", str(tmp_path / "cache"))


def test_five_files_are_one_split(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    splits = {f"data_batch_{i}.bin": rng.integers(0, 10, (4, 3073), np.uint8) for i in range(1, 6)}
    splits["test_batch.bin"] = rng.integers(0, 10, (3, 3073), np.uint8)
    names = [f"class{i}" for i in range(10)]
    published(monkeypatch, write_archive(tmp_path / "tfds", "cifar10", splits, {"batches.meta.txt": names}))
    dataset = load("cifar10", tmp_path / "tfds")
    assert list(dataset.class_names) == names
    for split, files in (("train", sorted(splits)[:5]), ("test", ["test_batch.bin"])):
        records = np.concatenate([splits[file] for file in files])
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        examples = getattr(dataset, split)
        there = {image.tobytes(): label for image, label in zip(examples.images, examples.labels, strict=True)}
        assert there == {image.tobytes(): label for image, label in zip(images, records[:, 0], strict=True)}
    assert not np.array_equal(dataset.train.labels, np.concatenate([splits[f] for f in sorted(splits)[:5]])[:, 0])


def test_another_archive_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"(?s)preparing it failed: .* is not the published archive: its SHA-256 is"):
        load("cifar10", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_without_a_network_no_folder_is_made(tmp_path, monkeypatch):
    """It may be a slip. What lies there for Python is named, as it is not read."""
    pytest.importorskip("tensorflow_datasets")

    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError, match=r"published archive, cifar-100-binary\.tar\.gz, or run once where"):
        load("cifar100", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for name, other in (
        ("cifar100", "cifar-100-python"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar10", "cifar-10-python.tar.gz"),
    ):
        (tmp_path / other).mkdir()
        with pytest.raises(UserError, match=rf"-binary\.tar\.gz \({other}, which is there, is another form"):
            load(name, tmp_path)
        (tmp_path / other).rmdir()


@pytest.mark.skipif(not REAL.is_dir(), reason="needs CIFAR-100 as TFDS has prepared it")
def test_examples_are_those_of_the_set_that_tfds_prepares(tmp_path, monkeypatch):
    """Of the test split; the archive is put together from the set itself, by the ids that tell each record's place."""
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("cifar100", data_dir=str(REAL.parent))
    source, records, order = builder.as_data_source(split="test"), np.zeros((10_000, 3074), np.uint8), []
    for example in source:
        order.append(int(str(example["id"])[-6:].strip("'")[-5:]))
        labels = [example["coarse_label"], example["label"]]
        records[order[-1]] = np.concatenate([labels, example["image"].transpose(2, 0, 1).reshape(-1)])
    names = {f"{kind}_label_names.txt": builder.info.features[key].names for kind, key in KINDS.items()}
    few = {"train.bin": records[:5], "test.bin": records}
    published(monkeypatch, write_archive(tmp_path / "tfds", "cifar100", few, names))
    dataset = load("cifar100", tmp_path / "tfds")
    images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset.test.images, images[order])
    np.testing.assert_array_equal(dataset.test.labels, records[order, 1])
    assert list(dataset.class_names) == names["fine_label_names.txt"]
    there, here = (  # whole, with ids and the images as files
        tfds.builder("cifar100", data_dir=str(folder)).as_data_source(
            split="test", decoders={"image": tfds.decode.SkipDecoding()}
        )
        for folder in (REAL.parent, tmp_path / "tfds")
    )
    ours = {key for key in there[0] if key != "image" or "ng" not in zlib.ZLIB_RUNTIME_VERSION}
    assert len(there) == len(here) and set(there[0]) == set(here[0])
    for i in range(0, 10_000, 5):
        assert all(there[i][key] == here[i][key] for key in ours), i


KINDS = {"coarse": "coarse_label", "fine": "label"}
