"""Reads the arrays of PyTorch checkpoints (`.pth`, old and new format, and safetensors) without PyTorch.

A checkpoint is a pickle, and unpickling a file from a stranger can run the stranger's code. The reader here builds
nothing but tensors and plain containers: every other thing that the pickle names becomes an inert placeholder.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from orc_jax.deploy.torch_kinds import STATE_DICT, foreign, is_safetensors
from orc_jax.errors import UserError, first

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
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    # Bytes of tensors that are no arrays here. Their sizes tell where the next storage begins.
    "UntypedStorage": np.uint8,
    "QInt8Storage": np.int8,
    "QUInt8Storage": np.uint8,
    "QInt32Storage": np.int32,
}
REPEATED = 2**20  # the most values of a tensor that repeats those of its storage
# What people save that is no state dict, the likeliest first; {} is an example of it.
MODULE = "is a whole module ({}), which takes its code to read: load it there and save its state_dict(), " + STATE_DICT
NUMPY = "holds NumPy arrays, not tensors: save them by safetensors.numpy.save_file"
META = 'holds tensors without values, such as {}, for they are on the device "meta": load the weights, then save them'
OPTIMIZER = (
    "holds an optimizer's state only, and no weights by the names of layers, such as conv1.weight: save the network's, "
    + STATE_DICT
)
INSTEAD = (MODULE, NUMPY, META, OPTIMIZER)
KINDS = {"_reconstruct": NUMPY, "_rebuild_meta_tensor_no_storage": META}  # by the functions that would build them


def read_state_dicts(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """All arrays of a checkpoint, in the dicts that hold them, by place: "" is the file, "model" a dict in it.

    What else lies in the file is nobody's business.

    Raises:
        UserError: if the file cannot be read, or holds no arrays; saying what it is, where that can be told.
    """
    try:
        if is_safetensors(path):
            from safetensors import safe_open
            from safetensors.flax import load_file

            with safe_open(path, "numpy") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            _refuse(name for name, kind in kinds.items() if kind.startswith(("F4", "F6_", "F8_")))
            return {"": {name: np.asarray(value) for name, value in load_file(path).items()}}
        if kind := foreign(path):
            raise ValueError(f"it is {kind}")
        others: dict[str, str] = {}
        checkpoint = _read_pickled(path)
        found = dict(_state_dicts(checkpoint, "", set(), others))
    except Exception as error:  # a damaged file makes the readers raise whatever they stumble over
        told = str(error) if str(error).startswith("it is ") else f"{type(error).__name__}: {error}"
        raise UserError(f"{path} cannot be read as a PyTorch checkpoint or safetensors: {told}") from error
    # A network's arrays are named by its layers, such as conv1.weight; those of optimizers and generators are not.
    named = any("." in name for arrays in found.values() for name in arrays)
    for text in () if named else INSTEAD:
        if text in others:
            raise UserError(f"{path} {text.format(others[text])}")
    if not found:
        what = f"has {first(map(str, checkpoint))}" if isinstance(checkpoint, dict) else f"is a {_name(checkpoint)}"
        what = "is empty" if isinstance(checkpoint, dict) and not checkpoint else what
        raise UserError(f"{path} holds no state dict: it {what}")
    return found


def _state_dicts(value: Any, place: str, seen: set[int], others: dict[str, str]) -> Iterator[tuple[str, dict]]:
    """The dicts in `value` that have arrays, with their places. What is `INSTEAD` of them goes to `others`."""
    if not isinstance(value, (dict, list)) or id(value) in seen:
        return
    seen.add(id(value))
    items = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, dict):
        if {"_modules", "_parameters"} <= value.keys():
            others.setdefault(MODULE, _name(value))
            return
        if {"state", "param_groups"} <= value.keys():
            others.setdefault(OPTIMIZER, place)
        own = {str(name): item for name, item in value.items() if isinstance(item, np.ndarray)}
        if own:
            _refuse(str(name) for name, item in value.items() if _name(item).startswith("torch._utils._rebuild_"))
            yield place, own
        for name, item in value.items():
            if text := KINDS.get(_name(item).rpartition(".")[2]):
                others.setdefault(text, str(name))
    for name, item in items:
        yield from _state_dicts(item, f"{place}.{name}" if place else str(name), seen, others)


def _refuse(tensors: Iterable[str]) -> None:
    """Raises for the names of tensors that are no plain arrays, beside others that are."""
    for name in tensors:
        raise ValueError(
            f"it is of tensors that are sparse, quantised or of 8 bits, such as {name}: save it in full "
            "(to_dense(), dequantize(), float())"
        )


def _name(value: Any) -> str:
    """What a file calls the type of a value."""
    return getattr(value, "named", type(value).__name__)


class _Storage:
    """A storage: its type is known when it is named, its bytes when they are read."""

    def __init__(self, dtype: Any, count: int):
        self.dtype, self.count = np.dtype(dtype), count
        self.values: Any = None

    def fill(self, data: bytes, big: bool = False) -> None:
        """Takes the bytes of its values, `big` if the most significant of each comes first."""
        if len(data) != self.count * self.dtype.itemsize:
            raise ValueError(f"a storage of {self.count} {self.dtype} has {len(data)} bytes")
        values = np.frombuffer(data, self.dtype)
        self.values = values.byteswap() if big else values


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negated: bool = False  # it is the negative of what is stored

    def array(self) -> np.ndarray:
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        count, size = self.storage.count, math.prod(self.shape)
        # A tensor that repeats its storage, as expand() makes it, could be of any size with a few bytes.
        too_large = size > max(count, REPEATED)
        if min((self.offset, *self.shape, *self.strides), default=0) < 0 or last >= count or too_large:
            raise ValueError(f"a tensor of shape {self.shape} does not fit its storage of {self.storage.count}")
        strides = tuple(s * self.storage.dtype.itemsize for s in self.strides)
        view = np.lib.stride_tricks.as_strided(self.storage.values[self.offset :], self.shape, strides)
        if self.negated:
            return -view
        return view if size > count else view.copy()  # in memory no larger than in the file


class _Inert(dict):
    """Stands for an object that is no tensor: it can be built, called and given a state, and does nothing."""

    named = "object"  # its type, by the name in the file

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return _Inert()

    # What lists, sets and keys of dicts must be able to do while they are read.
    def append(self, item: Any) -> None:
        """Of a kind of list: what is in it is not kept."""

    def extend(self, items: Any) -> None:
        """As `append`."""

    def add(self, item: Any) -> None:
        """Of a kind of set."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return id(self)


def _rebuild_tensor(storage, offset, shape, strides, *rest) -> _Tensor | _Inert:
    if isinstance(storage, _Inert):
        return storage
    _, _, metadata = (*rest, *[{}] * 3)[:3]  # after whether it has a gradient, and hooks
    return _Tensor(storage, offset, tuple(shape), tuple(strides), negated=bool((metadata or {}).get("neg")))


def _rebuild_parameter(tensor, *rest) -> _Tensor:
    return tensor


def _rebuild_subclass(function, kind, arguments, *rest) -> _Tensor | _Inert:
    """A tensor of a class derived from PyTorch's."""
    return function(*arguments) if function in BUILDERS.values() else _Inert()


BUILDERS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_subclass,
}


def _unpickler(file: IO[bytes], storage: Callable[[str, Any, int], _Storage], zipped: bool = False) -> pickle.Unpickler:
    """An unpickler that asks `storage(key, dtype, count)` for the storages."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in BUILDERS:
                return BUILDERS[module, name]
            if module in ("torch", "torch.storage") and name in DTYPES:
                return DTYPES[name]
            return type("Inert", (_Inert,), {"named": f"{module}.{name}"})

        def persistent_load(self, pid: Any) -> Any:
            if pid[0] == "module":  # as the old format has the class of a pickled module, beside its code
                return pid[1]
            kind, dtype, key, _, count = pid[:5]
            if zipped and isinstance(dtype, type) and issubclass(dtype, _Inert):
                return dtype()  # of numbers that no network here has; what is beside it can still be read
            if kind != "storage" or dtype not in DTYPES.values() or (len(pid) > 5 and pid[5] is not None):
                raise ValueError(f"a storage of an unknown kind: {pid}")
            return storage(key, dtype, count)

    return Unpickler(file)


def _read_pickled(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        return _materialized(_read_old(path))
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = index.removesuffix("data.pkl")
        big = _is_big(archive, f"{root}byteorder")
        storages = {}

        def storage(key, dtype, count):
            if key not in storages:
                entry = archive.getinfo(f"{root}data/{key}")
                if entry.compress_type != zipfile.ZIP_STORED:  # as PyTorch does; a small file stays small in memory
                    raise ValueError(f"the storage {entry.filename} is compressed")
                storages[key] = _Storage(dtype, count)
                storages[key].fill(archive.read(entry), big)
            return storages[key]

        with archive.open(index) as file:
            return _materialized(_unpickler(file, storage, zipped=True).load())


def _is_big(archive: zipfile.ZipFile, entry: str) -> bool:
    """Whether an archive is of a machine that has the most significant byte of a number first, if it says so."""
    if entry not in archive.namelist():
        return False
    with archive.open(entry) as file:
        return file.read(4) == b"big"


def _read_old(path: Path) -> Any:
    """The format before PyTorch 1.6: the pickle first, then the bytes of the storages in the order of a list."""
    storages = {}

    def storage(key, dtype, count):
        return storages.setdefault(key, _Storage(dtype, count))

    with path.open("rb") as file:
        plain = [_unpickler(file, storage) for _ in range(3)]
        if plain[0].load() != OLD_MAGIC:
            raise ValueError(
                "it is a pickle that torch.save has not written: read it there, and torch.save what it holds"
            )
        for unpickler in plain[1:]:
            unpickler.load()
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
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Tensor):
        done[id(value)] = value.array()
    elif isinstance(value, dict):
        done[id(value)] = made = type(value)() if isinstance(value, _Inert) else {}
        made.update({key: _materialized(item, done) for key, item in value.items()})
    elif isinstance(value, (list, tuple)):
        done[id(value)] = made = []
        made += [_materialized(item, done) for item in value]
    else:
        return value
    return done[id(value)]
