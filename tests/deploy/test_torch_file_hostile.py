"""Files of PyTorch from strangers: damaged, or made to be large, to run something, or to write somewhere."""

import contextlib
import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orc_jax.errors import UserError
from tests.deploy.members import read_arrays
from tests.helpers import RELAXED


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("files")
    content = {"model": {"fc.weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3}
    torch.save(content, folder / "new.pth")
    torch.save(content, folder / "old.pth", _use_new_zipfile_serialization=False)
    return [(folder / name).read_bytes() for name in ("new.pth", "old.pth")]


@settings(RELAXED, max_examples=300)
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
    save_as_zip(path, {"count": 6, "shape": (2**10, 2**10), "strides": (0, 0)})
    repeated = read_arrays(path)["fc.weight"]  # as expand() makes them
    assert repeated.shape == (2**10, 2**10) and repeated.base is not None and repeated.strides == (0, 0)
    save_as_zip(path, {"count": 6, "shape": (2**10 + 1, 2**10), "strides": (0, 0)})
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
