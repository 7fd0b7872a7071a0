"""Turns a PyTorch checkpoint into one that `config.pivot_checkpoint` accepts and `--mode=evaluate` evaluates.

python -m orc_jax.import_torch resnet56.pth --model resnet56 --out teachers/resnet56

Takes state dicts of RepDistiller, mdistiller, torchvision and timm, as `.pth` or safetensors; PyTorch is not needed.
What wrappers put before the names ("module.", "model.student.") is taken off. Of a
file that orc_jax.export wrote, its description is read as well: which network it is, of which classes, and what its
images must be. Options that are given hold over it.
"""

import collections
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from orc_jax import commands, places
from orc_jax.config_files import USUAL_SETS
from orc_jax.data.sets import CONSTANTS
from orc_jax.deploy.torch_file import read_state_dicts
from orc_jax.deploy.torch_layout import COUNTER, from_torch, torch_name, torch_shape, without_timm
from orc_jax.errors import UserError, require_choice
from orc_jax.models import LARGE, MODELS
from orc_jax.models.network import Params, make_network, weight_shapes
from orc_jax.terminal import doing, make_console
from orc_jax.workdir import checkpoint, record
from orc_jax.workdir.record import Record

USUAL_CROP = 0.875  # of a network for 224x224 images: of 256
SHOWN = 6  # names of each kind in an error
READ = ("architecture", "class_names", "input", "resize", "mean", "std")  # of the metadata of an export


class Description(NamedTuple):
    """What an export says of its network (see `orc_jax.deploy.export.describe`)."""

    model: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int]  # (height, width)
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    crop: float | None  # share of the short side that evaluation keeps; None: the whole image, resized


def description_of(path: Path) -> Description | None:
    """What lies beside an exported file, or in the metadata of one in safetensors; None if that is no description."""
    beside = Path(f"{path}.json")
    try:
        if beside.is_file():
            found = json.loads(beside.read_text())
        elif path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np") as file:
                found = {
                    k: v if k == "architecture" else json.loads(v) for k, v in file.metadata().items() if k in READ
                }
        else:
            return None
        resize, shape = found["resize"], (int(found["input"]["height"]), int(found["input"]["width"]))
        return Description(
            model=str(found["architecture"]),
            class_names=tuple(map(str, found["class_names"])),
            image_size=shape,
            mean=tuple(map(float, found["mean"])),
            std=tuple(map(float, found["std"])),
            crop=None if resize["method"] == "stretch" else shape[0] / int(resize["short_side"]),
        )
    except Exception:  # any file may have such a name, and any metadata
        return None


def convert(
    arrays: dict[str, np.ndarray], model: str, image_size: int | tuple[int, int] | None = None
) -> tuple[Params, Params, int, tuple[int, int, int]]:
    """The network `model` from the arrays of a state dict: (params, batch_stats, number of classes, image shape).

    The numbers of classes and of channels are read off the arrays; `image_size` is that of the images the network was
    trained on, both sides or (height, width), by default what `model` is made for.

    Raises:
        UserError: listing the arrays that are missing, left over, of another shape, or not finite.
    """
    size = image_size or _usual_sides(model)
    sides: tuple[int, int] = (size, size) if isinstance(size, int) else size
    classes, channels = 100, 3
    # The parameters whose shapes follow the number of classes or of channels tell what it is.
    for name in _follows(model, (classes, (*sides, channels)), (classes + 1, (*sides, channels))):
        classes = _read_off(arrays, name, 0, classes)
    for name in _follows(model, (classes, (*sides, channels)), (classes, (*sides, channels + 1))):
        channels = _read_off(arrays, name, 1, channels)
    image_shape = (*sides, channels)
    wanted = _shapes(model, classes, image_shape)
    left_over = {name: value for name, value in arrays.items() if not name.endswith(f".{COUNTER}")}
    found, wrong, odd = ({}, {}), [], []
    for kind, shapes in enumerate(wanted):
        for name, shape in shapes.items():
            value = left_over.pop(torch_name(name), None)
            if value is None:
                wrong.append(f"missing: {torch_name(name)}")
                continue
            array = from_torch(value)
            if array.shape != shape:
                wrong.append(f"of another shape: {torch_name(name)} {value.shape}, needed is {torch_shape(shape)}")
            if not np.isfinite(array).all():
                odd.append(torch_name(name))
            found[kind][name] = array
    rest = [f"left over: {name} {value.shape}" for name, value in left_over.items()]
    if count := len(wrong) + len(rest):
        shown = "\n  ".join([*_first(wrong), *_first(rest)])
        raise UserError(
            f"the checkpoint is not one of --model={model} ({count} differences):\n  {shown}\n"
            f"{_cause(found, wrong, rest)}"
        )
    if odd:
        raise UserError(
            f"weights that are not finite: {', '.join(_first(odd))}. The network computes nothing with them"
        )
    return *found, classes, image_shape


def _first(lines: list[str]) -> list[str]:
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def _cause(found: tuple[dict, dict], wrong: list[str], rest: list[str]) -> str:
    """What is most likely the matter with a checkpoint that lacks something, or has too much."""
    if not found[0]:
        return "No name is in common, so it is another network, or the same written down with other names"
    if any(line.startswith("of another") for line in wrong):
        return "Shapes differ, so it is most likely a relative of another width, or for images of another size"
    if wrong and rest:
        return "Some names are in common, so it is most likely a relative of it: another depth, or another definition"
    return "It is most likely a deeper network" if rest else "It is most likely a shallower network, or a part of one"


def unwrapped(state_dicts: dict[str, dict[str, np.ndarray]], model: str) -> dict[str, dict[str, np.ndarray]]:
    """What in a file may be the network `model`, by place and prefix in it, with the names as `model` has them.

    A prefix is what stands before most of the network's own names. What has other prefixes is no part of it.
    """
    names = {torch_name(name) for shapes in _shapes(model, 100, (*_usual_sides(model), 3)) for name in shapes}
    result = {}
    for place, arrays in state_dicts.items():
        hits = collections.Counter()
        for name in arrays:
            parts = name.split(".")
            for i in range(len(parts)):
                rest = ".".join(parts[i:])
                hits[".".join(parts[:i])] += (rest if rest in names else without_timm(rest)) in names
        most = max(hits.values(), default=0)
        # one that is inside another, such as a block of a network, has few
        for prefix in [p for p, count in hits.items() if most and count > max(most, len(names)) / 2] or [""]:
            start = f"{prefix}." if prefix else ""
            own = {name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)}
            if not names & own.keys() or model == "mobilenet_v2":
                own = {name if name in names else without_timm(name): value for name, value in own.items()}
            result[f"{place}.{prefix}".strip(".")] = own
    return result


def choose(
    state_dicts: dict[str, dict[str, np.ndarray]], model: str, key: str | None, image_size: int | tuple[int, int] | None
) -> dict[str, np.ndarray]:
    """The one state dict of a file that is the network `model`; `key` says which, where there are several.

    Raises:
        UserError: listing them if there are several and none was chosen, or none has this key.
    """
    candidates = unwrapped(state_dicts, model)
    listed = ", ".join(map(repr, candidates))
    if key is not None:
        exact = [name for name in candidates if name == key]
        parts = exact or [name for name in candidates if key in name.split(".")]
        if len(parts) != 1:
            raise UserError(f"--key={key!r}: is not one of what the file holds: {listed}")
        return candidates[parts[0]]
    fitting = {name: arrays for name, arrays in candidates.items() if _fits(arrays, model, image_size)}
    first = next(iter((fitting or candidates).values()))
    if any(not _same(first, other) for other in fitting.values()):
        raise UserError(
            f"the file holds {len(fitting)} different networks that fit --model={model}: "
            f"{', '.join(map(repr, fitting))}. Choose one by --key"
        )
    return first if fitting else max(candidates.values(), key=len)


def _fits(arrays: dict[str, np.ndarray], model: str, image_size: int | tuple[int, int] | None) -> bool:
    try:
        convert(arrays, model, image_size)
    except UserError as error:
        return str(error).startswith("weights that are not finite")
    return True


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one is other or (one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one))


def _usual_sides(model: str) -> tuple[int, int]:
    return (224, 224) if model in LARGE else (32, 32)


@functools.cache
def _shapes(model: str, classes: int, image_shape: tuple[int, int, int]) -> tuple[dict, dict]:
    params, batch_stats = weight_shapes(make_network(MODELS[model], classes, image_shape))
    return {k: v.shape for k, v in params.items()}, {k: v.shape for k, v in batch_stats.items()}


def _follows(model: str, one: tuple, other: tuple) -> list[str]:
    before, after = _shapes(model, *one)[0], _shapes(model, *other)[0]
    return [name for name in before if before[name] != after[name] and name.endswith(".kernel")]


def _read_off(arrays: dict[str, np.ndarray], name: str, axis: int, default: int) -> int:
    value = arrays.get(torch_name(name))
    return default if value is None or value.ndim <= axis else value.shape[axis]


def import_checkpoint(
    path: Path,
    model: str | None,
    out: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int | None = None,
    key: str | None = None,
    class_names: Sequence[str] = (),
) -> Record:
    """Writes the network `model` from the PyTorch checkpoint `path` as a workdir `out`; returns its record.

    What is not given is taken from the description of an export of ours, if `path` has one, or else what is usual.
    `key` says which of several networks in the file; `class_names` are in the order of its outputs.

    Raises:
        UserError: if the file is not one of `model`, the normalisation of its images is not known, or `out` exists.
    """
    if model is not None:
        require_choice("--model", model, MODELS)
    places.workdir("--out", out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out}: exists and is not an empty folder; nothing is overwritten")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    state_dicts, described = read_state_dicts(path), description_of(path)
    if model is None:
        if described is None:
            raise UserError(f"--model: needed to know which network {path} holds, for no {path.name}.json describes it")
        model = described.model
        require_choice("--model", model, MODELS)
    size = image_size or (described.image_size if described else None)
    params, batch_stats, classes, image_shape = convert(choose(state_dicts, model, key, size), model, size)
    names = tuple(class_names) or (described.class_names if described else ())
    if names and len(names) != classes:
        who = "--class_names" if class_names else "its description"
        raise UserError(f"{path} has {classes} classes, but {who} names {len(names)}")
    if not mean and not std and described:
        mean, std = described.mean, described.std
    elif not mean and not std:
        if classes not in USUAL_SETS:
            raise UserError(
                f"--mean, --std: needed for a network of {classes} classes, to know how its images were normalised "
                f"(per channel, of images in [0, 1]); assumed only for {', '.join(map(str, USUAL_SETS))} classes"
            )
        mean, std = CONSTANTS[USUAL_SETS[classes]]
    if not len(mean) == len(std) == image_shape[-1] or min(std) <= 0:
        raise UserError(f"--mean={mean} --std={std}: must have {image_shape[-1]} values each, --std greater than 0")
    imported = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    written = Record(
        config={},
        architectures=(model,),
        num_classes=classes,
        class_names=names,
        num_train=0,
        image_shape=image_shape,
        mean=tuple(mean),
        std=tuple(std),
        eval_crop=described.crop if described else USUAL_CROP if model in LARGE else None,
        versions=record.versions(),
        imported=imported,
    )
    stack = jax.tree.map(lambda x: x[None], {"params": params, "batch_stats": batch_stats})
    with checkpoint.open_manager(out, create=True) as manager:
        checkpoint.save(manager, 0, {"stacks": {model: stack}}, written, selected_by=0.0)
    record.write(out, written)
    return written


def main() -> None:
    commands.start()
    parser = commands.parser(__doc__)
    parser.add_argument("checkpoint", type=commands.path, help="a .pth or .safetensors file")
    parser.add_argument("--model", help="which network it is: a registered name, such as resnet56")
    parser.add_argument("--out", type=commands.path, required=True, help="the folder to write")
    constants = (
        f"of its images, per channel in [0, 1]; default: those usual for {', '.join(map(str, USUAL_SETS))} classes"
    )
    parser.add_argument("--mean", type=float, nargs="+", default=[], help=f"normalisation {constants}")
    parser.add_argument("--std", type=float, nargs="+", default=[], help="see --mean")
    parser.add_argument(
        "--key", help="which network, where the file holds several: where it lies there, as is listed then"
    )
    help = "its classes in the order of its outputs, or one file with a name in each line; else a data set's own order"
    parser.add_argument("--class_names", nargs="+", default=[], help=help)
    parser.add_argument("--image_size", type=int, help="height and width of its images; default: 32 or 224, by model")
    args = parser.parse_args()
    with doing(make_console(), f"reading {args.checkpoint}"), commands.reported():
        written = import_checkpoint(
            args.checkpoint,
            args.model,
            args.out,
            mean=args.mean,
            std=args.std,
            image_size=args.image_size,
            key=args.key,
            class_names=commands.read_class_names(args.class_names),
        )
    named = "" if written.num_classes in USUAL_SETS else " --config.dataset=..."
    (model,) = written.architectures
    print(
        f"{model} with {written.num_classes} classes, for images of {list(written.image_shape)}\n"
        f"normalised with mean {list(written.mean)}, std {list(written.std)}, written to {args.out}.\n"
        f"To use it as pivot teacher:\n"
        f"  --config.teacher={model} --config.pivot_checkpoint={args.out}\n"
        f"To evaluate it:\n"
        f"  python -m orc_jax.main --mode=evaluate --workdir={args.out}{named}"
    )
