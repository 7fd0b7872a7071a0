"""Writes one member of a trained pool as a file that other programs run, and beside it what its images must be.

python -m orc_jax.export --workdir runs/cifar100_orc --format onnx --out student.onnx

The formats and how to load each: docs/deploy.md.
"""

import contextlib
import functools
import importlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.export
import numpy as np

from orc_jax import cache, commands
from orc_jax.deploy.member import Member, classifier, load_member
from orc_jax.deploy.torch_layout import state_dict
from orc_jax.errors import UserError, require_choice
from orc_jax.terminal import doing, make_console
from orc_jax.workdir.files import writing

PLATFORMS = ("cpu", "cuda", "tpu")

# What the formats take. Those that hold a program normalise the images themselves; to weights it is left to do.
PROGRAM_INPUT = {"dtype": "uint8", "layout": "NHWC", "values": "pixels, 0 to 255"}
WEIGHTS_INPUT = {"dtype": "float32", "layout": "NCHW", "values": "(pixels / 255 - mean) / std, per channel"}


def describe(member: Member, taken: dict[str, Any]) -> dict[str, Any]:
    """What a user of `member` must know; `taken` describes the input of its format."""
    height, width, channels = member.image_shape
    colors = {1: "grey", 3: "RGB"}.get(channels)
    if member.crop is None:
        resize = {"method": "stretch", "height": height, "width": width}
    else:
        resize = {"method": "short side, centre crop", "short_side": round(height / member.crop), "crop": height}
    return {
        "architecture": member.architecture,
        "member": member.name,
        "step": member.step,
        "ema": member.ema,
        "num_classes": member.num_classes,
        "class_names": list(member.class_names),
        "input": taken | {"height": height, "width": width, "channels": channels, "colors": colors},
        "resize": resize | {"interpolation": "bilinear, antialiased"},
        "pixel_range": list(member.pixel_range) or None,
        "mean": list(member.mean),
        "std": list(member.std),
        "output": {"dtype": "float32", "shape": ["batch", member.num_classes], "values": "logits"},
    }


def texts(description: dict[str, Any]) -> dict[str, str]:
    """A description as the metadata of a file, whose values are strings: those that are none become JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}


def to_safetensors(member: Member, description: dict[str, Any]) -> bytes:
    """The weights by their PyTorch names."""
    from safetensors.numpy import save

    return save(state_dict(*member.weights), metadata={"format": "pt"} | texts(description))


def to_torch(member: Member, description: dict[str, Any]) -> bytes:
    """A state dict; needs PyTorch."""
    torch = _optional("torch", "torch; --format=safetensors holds the same without PyTorch")
    file = io.BytesIO()
    torch.save({name: torch.tensor(value) for name, value in state_dict(*member.weights).items()}, file)
    return file.getvalue()


def to_onnx(member: Member, description: dict[str, Any]) -> bytes:
    """A program for any runtime of ONNX; needs the package onnx."""
    _optional("onnx", "onnx")
    from orc_jax.deploy import onnx_graph

    # JAX's own convolutions: those for pools write depthwise ones as products and sums
    function = functools.partial(classifier(member, jax.lax.conv_general_dilated), member.weights)
    return onnx_graph.to_onnx(function, member.image_shape, texts(description))


def to_stablehlo(member: Member, description: dict[str, Any]) -> bytes:
    """A program for `jax.export`."""
    _optional("flatbuffers", "flatbuffers")
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *member.image_shape), np.uint8)
    function = jax.jit(functools.partial(classifier(member), member.weights))
    return bytes(jax.export.export(function, platforms=PLATFORMS)(images).serialize())


def _optional(package: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"the package {package} is needed for this format ({error}): pip install {install}") from error


FORMATS: dict[str, tuple[Callable[[Member, dict[str, Any]], bytes], dict[str, Any]]] = {
    "safetensors": (to_safetensors, WEIGHTS_INPUT),
    "torch": (to_torch, WEIGHTS_INPUT),
    "onnx": (to_onnx, PROGRAM_INPUT),
    "stablehlo": (to_stablehlo, PROGRAM_INPUT),
}


def export_member(
    workdir: Path,
    which_member: str,
    which_checkpoint: str,
    format: str,
    out: Path,
    own: Sequence[str] = (),
    ema: bool | None = None,
) -> dict[str, Any]:
    """Writes a member of a run (see `load_member`) to `out`, and its description to `out` with `.json` appended.

    `format` is one of `FORMATS`. Returns the description.

    Raises:
        UserError: if there is no such member or format, a package is missing, a file exists or cannot be written.
            Nothing is left behind then.
    """
    require_choice("--format", format, FORMATS)
    beside = Path(f"{out}.json")
    with writing(f"--out={out}"):
        for path in (out, beside):
            if path.exists():
                raise UserError(f"--out={out}: {path} exists; nothing is overwritten")
        if not out.parent.is_dir():
            raise UserError(f"--out={out}: there is no folder {out.parent}")
    member = load_member(workdir, which_member, which_checkpoint, own, ema)
    write, taken = FORMATS[format]
    description = describe(member, taken)
    # the description last: where it is, the file is whole
    contents = {out: write(member, description), beside: (json.dumps(description, indent=2) + "\n").encode()}
    with writing(f"--out={out}"), contextlib.ExitStack() as undo:
        for path, content in contents.items():
            with path.open("xb") as file:
                undo.callback(path.unlink)
                file.write(content)
        undo.pop_all()
    return description


def main() -> None:
    commands.start()
    parser = commands.parser(__doc__)
    commands.add_member_arguments(parser)
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--out", type=commands.path, required=True, help="the file to write, and beside it FILE.json")
    args = parser.parse_args()
    commands.keep_programs(str(cache.folder()))
    with doing(make_console(), f"writing {args.out}"), commands.reported():
        written = export_member(args.workdir, args.member, args.checkpoint, args.format, args.out, args.own, args.ema)
    averages = ", its averages," if written["ema"] else ""
    print(
        f"{written['member']}{averages} of step {written['step']}, {written['num_classes']} classes: {args.out}, "
        f"described in {args.out}.json"
    )
