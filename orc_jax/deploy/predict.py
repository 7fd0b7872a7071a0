"""Classes and their probabilities for image files, by one member of a trained pool.

python -m orc_jax.predict --workdir runs/cifar100_orc photo.jpg another.png

The images are decoded, resized, cropped and normalised as in evaluation. Files that are no images are named at the end,
when all others have been predicted, and the exit code is then 2.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from orc_jax import cache, commands
from orc_jax.data import decode, deep
from orc_jax.deploy.ensemble import ENSEMBLE, load_ensemble
from orc_jax.deploy.member import Member, classifier, load_member
from orc_jax.errors import UserError, require
from orc_jax.terminal import doing, make_console

BATCH = 64  # images that are held in memory at a time


def answering(member: Member) -> Callable[[np.ndarray], jax.Array]:
    """A function: uint8 images `[batch, height, width, channels]` -> the member's probabilities `[batch, classes]`."""
    logits = classifier(member)
    probabilities = jax.jit(lambda weights, images: jax.nn.softmax(logits(weights, images)))
    return lambda images: probabilities(member.weights, images)


def predict(
    member: Member, paths: Sequence[Path], top: int, probabilities: Callable[[np.ndarray], jax.Array] | None = None
) -> Iterator[dict]:
    """The most probable classes of every image file, in the order of `paths`.

    `member` says how images are prepared, and answers unless there are other `probabilities`.

    Yields:
        {"file", "classes": [{"index", "name", "probability"} ...]}, the most probable first, with a "note" if the image
        may not have been seen as it was meant; or {"file", "error"} for a file that is no image or cannot be read.
    """
    probabilities = probabilities or answering(member)
    names = member.class_names or tuple(map(str, range(member.num_classes)))  # imported weights do not know theirs
    # one size, so one compilation
    images = np.zeros((min(BATCH, len(paths)), *member.image_shape), np.uint8)
    for start in range(0, len(paths), BATCH):
        group = paths[start : start + BATCH]
        told = [_read(member, path, image) for path, image in zip(group, images, strict=False)]
        for path, (error, note), row in zip(group, told, np.asarray(probabilities(images)), strict=False):
            if error:
                yield {"file": str(path), "error": error}
                continue
            if not np.isfinite(row).all():  # weights that are finite can still be too large
                yield {"file": str(path), "error": "the network's answer is not a number"}
                continue
            best = np.argsort(-row, kind="stable")[:top]
            classes = [{"index": int(i), "name": names[i], "probability": float(row[i])} for i in best]
            yield {"file": str(path), "classes": classes} | ({"note": note} if note else {})


def _read(member: Member, path: Path, image: np.ndarray) -> tuple[str | None, str | None]:
    """Decodes a file into `image`; returns the reason if that fails, and what is odd about the values of the file."""
    try:
        data = path.read_bytes()
        image[...] = member.image(data)
        values = decode.deep_values(decode.open_image(data))
    except OSError as error:
        return error.strerror or str(error), None
    except ValueError as error:
        return str(error), None
    return None, deep.seen_as(values, member.pixel_range) if values else None


def main() -> None:
    commands.start()
    parser = commands.parser(__doc__)
    commands.add_member_arguments(parser, f" or {ENSEMBLE}")
    parser.add_argument("--top", type=int, default=5, help="how many classes to tell; default: 5")
    parser.add_argument("--json", action="store_true", help="one JSON object per image and line")
    parser.add_argument(
        "images", type=commands.path, nargs="+", metavar="IMAGE", help="an image file of any kind Pillow reads"
    )
    args = parser.parse_args()
    commands.keep_programs(str(cache.folder()))
    with commands.reported():
        require("--top", args.top, args.top > 0, "at least 1")
        together = args.member == ENSEMBLE
        which = "target" if together else args.member
        with doing(make_console(stderr=True), "reading the network"):
            member, defects = load_member(args.workdir, which, args.checkpoint, args.own, args.ema), []
            answer = (
                load_ensemble(args.workdir, str(member.step), args.own, args.ema) if together else answering(member)
            )
        name = ENSEMBLE if together else member.name
        if not args.json:
            print(f"{name} of step {member.step} answers", file=sys.stderr)
        channels = member.image_shape[-1]
        require("the network's channels", channels, channels in (1, 3), "1 (grey) or 3 (RGB) to predict image files")
        for result in predict(member, args.images, args.top, answer):
            if "error" in result:
                defects.append(f"{result['file']}: {result['error']}")
            elif args.json:
                print(json.dumps(result | {"member": name, "step": member.step}), flush=True)
            else:
                print(result["file"] + (f" (note: {result['note']})" if "note" in result else ""))
                for row in result["classes"]:
                    print(f"  {row['probability']:7.2%}  {row['name']}")
        if defects:
            raise UserError("\n  ".join([f"{len(defects)} of {len(args.images)} files cannot be used:", *defects]))
