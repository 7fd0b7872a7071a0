"""Turns a PyTorch checkpoint into one that `config.pivot_checkpoint` accepts and `--mode=evaluate` evaluates.

python -m orc_jax.import_torch resnet56.pth --model resnet56 --out teachers/resnet56

Takes state dicts of RepDistiller, mdistiller, torchvision and timm, as `.pth` or safetensors; PyTorch is not needed.
What stands before all names ("module.", "model.student.") is taken off. Of several networks in a file that fit, such as
weights and their moving average, --key names one. Of a file that orc_jax.export wrote, its description is read as well:
which network it is, of which classes, and what its images must be. Options that are given hold over it.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import commands, places
from orc_jax.config_files import USUAL_SETS
from orc_jax.data.folder import in_order
from orc_jax.data.sets import CONSTANTS, require_constants
from orc_jax.deploy import positions
from orc_jax.deploy.description import description_of
from orc_jax.deploy.finite import require_usable
from orc_jax.deploy.member import USED
from orc_jax.deploy.other_names import known_as
from orc_jax.deploy.torch_file import read_state_dicts
from orc_jax.deploy.torch_layout import from_torch, torch_name, torch_shape
from orc_jax.deploy.torch_match import ROOT, Arrays, beside, candidates, counts, differences, named, same
from orc_jax.errors import UserError, first, plural, require, require_choice
from orc_jax.models import HALF, LARGE, MODELS, sides
from orc_jax.models.network import Params, class_axes, make_network, weight_shapes, with_outputs
from orc_jax.terminal import doing, make_console
from orc_jax.workdir import checkpoint, record
from orc_jax.workdir.files import writing
from orc_jax.workdir.record import Record

USUAL_CROP = 0.875  # of a network for 224x224 images: of 256
IMAGENET = 1000
LARGEST = 4096  # pixels on a side of images: a mistake if there are more


def convert(
    arrays: dict[str, np.ndarray], model: str, image_size: int | tuple[int, int] | None = None
) -> tuple[Params, Params, int, tuple[int, int, int]]:
    """The network `model` from the arrays of a state dict: (params, batch_stats, number of classes, image shape).

    The numbers of classes and of channels are read off the arrays; `image_size` is that of the images the network was
    trained on, both sides or (height, width), by default what `model` is made for, or what its position embeddings are
    for. For images of another size these are resized (see `positions.resized`).

    Raises:
        UserError: listing the arrays that are missing, left over, of another shape, or no numbers of floating point.
    """
    usual = _usual_sides(model)
    size = positions.sides(arrays, _shapes(model, 100, (*usual, 3))[0]) or usual if image_size is None else image_size
    sides: tuple[int, int] = (size, size) if isinstance(size, int) else size
    classes, channels = 100, 3
    # The parameters whose shapes follow the number of classes or of channels tell what it is.
    for name in _follows(model, (classes, (*sides, channels)), (classes + 1, (*sides, channels))):
        classes = _read_off(arrays, name, 0, classes)
    for name in _follows(model, (classes, (*sides, channels)), (classes, (*sides, channels + 1))):
        channels = _read_off(arrays, name, 1, channels)
    image_shape = (*sides, channels)
    wanted = _shapes(model, classes, image_shape)
    left_over = {name: value for name, value in arrays.items() if not counts(name)}
    found, missing, shapes_differ, whole = ({}, {}), [], [], []
    for kind, shapes in enumerate(wanted):
        for name, shape in shapes.items():
            value = left_over.pop(torch_name(name), None)
            if value is None:
                missing.append(torch_name(name))
                continue
            if not jnp.issubdtype(value.dtype, jnp.floating):
                whole.append(f"{torch_name(name)} ({value.dtype})")
                continue
            array = from_torch(value)
            if positions.fits_resized(name, array, shape):
                array = positions.resized(array, positions.grid(wanted[0], image_shape))
            if array.shape != shape:
                shapes_differ.append(f"{torch_name(name)} {value.shape}, needed is {torch_shape(shape)}")
            found[kind][name] = array
    if missing or shapes_differ or left_over:
        left = [f"{name} {value.shape}" for name, value in left_over.items()]
        raise differences(model, missing, shapes_differ, left, sum(map(len, found)))
    if whole:
        raise UserError(
            f"weights that are no numbers of floating point: {first(whole)}. Quantised ones cannot be "
            "read: save them as float32"
        )
    return *found, classes, image_shape


def choose(
    found: dict[str, Arrays], model: str, image_size: int | tuple[int, int] | None = None, key: str | None = None
) -> tuple[str, tuple[Params, Params, int, tuple[int, int, int]]]:
    """The network `model` among those in a file (see `read_state_dicts`): its label, and what `convert` makes of it.

    It is the one that `key` names, or else the only one that is a `model`.

    Raises:
        UserError: if there is none, or several that are not the same; as `convert` if there is none.
    """
    wanted = {torch_name(name) for kind in _shapes(model, 100, (*_usual_sides(model), 3)) for name in kind}
    there = candidates(found, wanted, known_as(model, wanted))
    if key is not None:
        there = {(label := named(there, key)): there[label]}
    fitting, errors = {}, []
    for label, arrays in there.items():
        try:
            fitting[label] = convert(arrays, model, image_size)
        except UserError as error:
            errors.append(error)
    if not fitting:
        others = ", ".join(list(there)[1:])
        first = next(iter(there))
        also = f"\nOf {first}; there are also {others}" if others else beside(found, there[first])
        raise UserError(f"{errors[0]}{_instead(found, model, image_size)}{also}")
    label, *others = fitting
    if any(not same(there[label], there[other]) for other in others):
        raise UserError(
            f"the file holds {len(fitting)} different networks that fit --model={model}: {', '.join(fitting)}. "
            f"Choose one by --key, such as --key={label}"
        )
    return label, fitting[label]


def _instead(found: dict[str, Arrays], model: str, image_size: int | tuple[int, int] | None) -> str:
    """The model that a file holds if it has another one of this name, as resnet50 and imagenet_resnet50: a message."""
    for other in MODELS:
        if other == model or not _alike(model, other):
            continue
        wanted = {torch_name(name) for kind in _shapes(other, 100, (*_usual_sides(other), 3)) for name in kind}
        for arrays in candidates(found, wanted, known_as(other, wanted)).values():
            if wanted <= arrays.keys() and _fits(arrays, other, image_size):
                return f". It is --model={other}"
    return ""


def _alike(one: str, other: str) -> bool:
    """Whether a name is another one with something before it or behind it."""
    short, long = sorted((name.lower().replace("_", "") for name in (one, other)), key=len)
    return long.endswith(short) or re.match(rf"{short}(?!\d)", long) is not None


def _fits(arrays: Arrays, model: str, image_size: int | tuple[int, int] | None) -> bool:
    try:
        convert(arrays, model, image_size)
    except UserError:
        return False
    return True


def _usual_sides(model: str) -> tuple[int, int]:
    return (sides(model), sides(model))


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


def _usual_constants(model: str, classes: int, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """The normalisation that is taken for granted with so many classes and channels."""
    if classes == IMAGENET and model in HALF:
        return (0.5,) * channels, (0.5,) * channels
    if classes not in USUAL_SETS:
        raise UserError(
            f"--mean, --std: needed for a network of {classes} classes, to know how its images were normalised "
            f"(per channel, of images in [0, 1]); assumed only for {', '.join(map(str, USUAL_SETS))} classes"
        )
    mean, std = CONSTANTS[USUAL_SETS[classes]]
    if len(mean) != channels:
        raise UserError(
            f"--mean, --std: needed for images of {plural(channels, 'channel')}, to know how they were normalised "
            f"(per channel, of images in [0, 1]); assumed only for {len(mean)} channels"
        )
    return mean, std


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
    `key` says which of several networks in the file (see `named`). `class_names` are in the order of its outputs; where
    all are numbers, the outputs are put in the order of these, as folders of images have them.

    Raises:
        UserError: if the file is not one of `model`, or has several; if its weights are not finite; if the
            normalisation of its images is not known, or not that of images in [0, 1]; if no images are of `image_size`,
            or `out` exists.
    """
    if model is not None:
        require_choice("--model", model, MODELS)
    if image_size is not None:
        require("--image_size", image_size, 1 <= image_size <= LARGEST, f"from 1 to {LARGEST}")
    places.workdir("--out", out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out}: exists and is not an empty folder; nothing is overwritten")
    if not path.is_file():
        reason = "is a folder; needed is a file in it" if path.is_dir() else "there is no such file"
        raise UserError(f"{path}: {reason}")
    found, described = read_state_dicts(path), description_of(path)
    if described and USED in described.model:
        raise UserError(f"{path} holds {described.model}, which is more than that network; accepted are networks alone")
    if model is None:
        if described is None:
            raise UserError(f"--model: needed to know which network {path} holds, for no {path.name}.json describes it")
        model = described.model
        require_choice("--model", model, MODELS)
    size = described.image_size if described and image_size is None else image_size
    label, (params, batch_stats, classes, image_shape) = choose(found, model, size, key)
    within = "" if label == ROOT else f" ({label})"
    as_there = [{torch_name(name): value for name, value in kind.items()} for kind in (params, batch_stats)]
    require_usable(f"{path}{within}", as_there[0], as_there[1])
    names = tuple(class_names) or (described.class_names if described else ())
    if names and len(names) != classes:
        who = "--class_names" if class_names else "its description"
        raise UserError(f"{path} has {classes} classes, but {who} names {len(names)}")
    ordered = in_order(names)
    if ordered != names:
        axes = class_axes(MODELS[model], classes, image_shape)
        params, names = with_outputs(params, axes, [names.index(name) for name in ordered]), ordered
    channels = image_shape[-1]
    if mean or std:
        require_constants("--", mean, std, channels)
    elif described:
        mean, std = described.mean, described.std
        require_constants(f"the description of {path}: ", mean, std, channels)
    else:
        mean, std = _usual_constants(model, classes, channels)
    imported = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    imported |= {} if label == ROOT else {"key": label}
    written = Record(
        config={"stream": {"pixel_range": described.pixel_range}} if described and described.pixel_range else {},
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
    with writing(f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
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
    parser.add_argument("--image_size", type=int, help="height and width of its images; default: by model or file")
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
    taken = (written.imported or {}).get("key")
    which = f"{model} ({taken} of the file)" if taken else model
    print(
        f"{which} with {written.num_classes} classes, for images of {list(written.image_shape)}\n"
        f"normalised with mean {list(written.mean)}, std {list(written.std)}, written to {args.out}.\n"
        f"To use it as pivot teacher:\n"
        f"  --config.teacher={model} --config.pivot_checkpoint={args.out}\n"
        f"To evaluate it:\n"
        f"  python -m orc_jax.main --mode=evaluate --workdir={args.out}{named}"
    )
