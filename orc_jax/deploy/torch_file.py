"""Reads the arrays of PyTorch checkpoints (`.pth`, old and new format, and safetensors) without PyTorch.

A checkpoint is a pickle, and unpickling a file from a stranger can run the stranger's code. The reader here builds
nothing but tensors and plain containers: every other thing that the pickle names becomes an inert placeholder.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from orc_jax.errors import UserError

OLD_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle in a file of PyTorch before 1.6
DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


OPTIMIZER = "optim"  # what begins so holds arrays of an optimizer
KINDS = (  # by how a file begins that is no checkpoint, whatever its name
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: git lfs pull fetches it"),
    (b"<!doctype", "is a web page, not a checkpoint: download the file itself"),
    (b"<html", "is a web page, not a checkpoint: download the file itself"),
)


def read_state_dicts(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every state dict in a checkpoint, by where it lies there: `{"state_dict": {"conv1.weight": ...}, "ema": ...}`.

    One that is the file itself lies at "". The kind of the file is told by how it begins, not by its name.

    Raises:
        UserError: if the file cannot be read, or holds no state dict.
    """
    with path.open("rb") as file:
        start = file.read(64)
    for begins, what in KINDS:
        if start.lstrip().lower().startswith(begins):
            raise UserError(f"{path} {what}")
    try:
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            from safetensors.flax import load_file

            return {"": {name: np.asarray(value) for name, value in load_file(path).items()}}
        checkpoint = _read_pickled(path)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes the readers raise whatever they stumble over
        raise UserError(
            f"{path} cannot be read as a PyTorch checkpoint or safetensors: {type(error).__name__}: {error}"
        ) from error
    found = dict(_state_dicts(checkpoint, ""))
    if not found:
        raise UserError(f"{path} holds no state dict: it {_instead(checkpoint)}")
    return found


def _state_dicts(checkpoint: Any, place: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Those in a checkpoint, with their places. A module that was pickled whole has none."""
    if not isinstance(checkpoint, dict) or _is_module(checkpoint):
        return
    own = {str(name): value for name, value in checkpoint.items() if isinstance(value, np.ndarray)}
    if any("." in name for name in own):
        yield place, own
    for name, value in checkpoint.items():
        if not str(name).startswith(OPTIMIZER):
            yield from _state_dicts(value, f"{place}.{name}" if place else str(name))


def _is_module(value: Any) -> bool:
    return isinstance(value, _Inert) and "_modules" in value


def _instead(checkpoint: Any) -> str:
    """What a checkpoint without a state dict is."""
    values = [checkpoint, *(checkpoint.values() if isinstance(checkpoint, dict) else ())]
    if any(map(_is_module, values)):
        return "has a whole module, whose code is needed to read it: save its state_dict() instead"
    inside = [item for value in values if isinstance(value, dict) for item in value.values()]
    if any(isinstance(item, _Inert) and item.origin.startswith("numpy") for item in inside):
        return "has NumPy arrays instead of tensors: save torch.tensor(value) of each, or safetensors"
    if isinstance(checkpoint, dict) and not isinstance(checkpoint, _Inert):
        return f"has {', '.join(map(str, checkpoint))}" if checkpoint else "is empty"
    return f"is a {getattr(checkpoint, 'origin', type(checkpoint).__name__)}"


class _Storage:
    """A storage: its type is known when it is named, its bytes when they are read."""

    def __init__(self, dtype: Any, count: int):
        self.dtype, self.count = np.dtype(dtype), count
        self.values: Any = None

    def fill(self, data: bytes) -> None:
        if len(data) != self.count * self.dtype.itemsize:
            raise ValueError(f"a storage of {self.count} {self.dtype} has {len(data)} bytes")
        self.values = np.frombuffer(data, self.dtype)


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        count = self.storage.count
        # A tensor that repeats its storage could make any size of a few bytes; none of a network's does.
        repeats = math.prod(self.shape) > count
        if min((self.offset, *self.shape, *self.strides), default=0) < 0 or last >= count or repeats:
            raise ValueError(f"a tensor of shape {self.shape} does not fit its storage of {self.storage.count}")
        size = self.storage.dtype.itemsize
        strides = tuple(s * size for s in self.strides)
        return np.lib.stride_tricks.as_strided(self.storage.values[self.offset :], self.shape, strides).copy()


class _Inert(dict):
    """Stands for an object that is no tensor: it can be built, filled, called and given a state, and does nothing."""

    origin = ""  # what it stands for: `module.name`

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def __hash__(self) -> int:  # it may be a key
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    def append(self, *items: Any) -> None:
        """As lists, queues and sets of other classes are filled."""

    extend = add = append

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def _rebuild_tensor(storage, offset, shape, strides, *rest) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *rest) -> _Tensor:
    return tensor


BUILDERS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
}


def _unpickler(file: IO[bytes], storage: Callable[[str, Any, int], _Storage]) -> pickle.Unpickler:
    """An unpickler that asks `storage(key, dtype, count)` for the storages."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in BUILDERS:
                return BUILDERS[module, name]
            if module == "torch" and name in DTYPES:
                return DTYPES[name]
            return type("_Inert", (_Inert,), {"origin": f"{module}.{name}"})

        def persistent_load(self, pid: Any) -> _Storage:
            kind, dtype, key, _, count = pid[:5]
            if kind != "storage" or dtype not in DTYPES.values() or (len(pid) > 5 and pid[5] is not None):
                raise ValueError(f"a storage of an unknown kind: {pid}")
            return storage(key, dtype, count)

    return Unpickler(file)


def _read_pickled(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        return _materialized(_read_old(path))
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise UserError(
                f"{path} is TorchScript, which has code in it: save the state_dict() of the network instead"
            )
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = index.removesuffix("data.pkl")
        storages = {}

        def storage(key, dtype, count):
            if key not in storages:
                entry = archive.getinfo(f"{root}data/{key}")
                if entry.compress_type != zipfile.ZIP_STORED:  # as PyTorch does; a small file stays small in memory
                    raise ValueError(f"the storage {entry.filename} is compressed")
                storages[key] = _Storage(dtype, count)
                storages[key].fill(archive.read(entry))
            return storages[key]

        with archive.open(index) as file:
            return _materialized(_unpickler(file, storage).load())


def _read_old(path: Path) -> Any:
    """The format before PyTorch 1.6: the pickle first, then the bytes of the storages in the order of a list."""
    storages = {}

    def storage(key, dtype, count):
        return storages.setdefault(key, _Storage(dtype, count))

    with path.open("rb") as file:
        plain = [_unpickler(file, storage) for _ in range(3)]
        magic, _, _ = (unpickler.load() for unpickler in plain)
        if magic != OLD_MAGIC:
            raise ValueError("neither a zip archive nor of the old format")
        result = _unpickler(file, storage).load()
        for key in _unpickler(file, storage).load():
            count = int.from_bytes(file.read(8), "little")
            if count != storages[key].count:
                raise ValueError(f"storage {key} has {count} values instead of {storages[key].count}")
            storages[key].fill(file.read(count * storages[key].dtype.itemsize))
    return result


def _materialized(value: Any, done: dict[int, Any] | None = None) -> Any:
    """`value` with arrays in place of its tensors; what is mentioned several times is made once."""
    done = {} if done is None else done
    if id(value) not in done:
        if isinstance(value, _Tensor):
            done[id(value)] = value.array()
        elif isinstance(value, _Inert):
            made = done[id(value)] = type(value)()  # before what is in it: objects may hold one another
            made.update({key: _materialized(item, done) for key, item in value.items()})
        elif isinstance(value, dict):
            done[id(value)] = {key: _materialized(item, done) for key, item in value.items()}
        elif isinstance(value, (list, tuple)):
            done[id(value)] = [_materialized(item, done) for item in value]
        else:
            return value
    return done[id(value)]
