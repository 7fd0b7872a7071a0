"""Where the time of a training step goes on the device that is here: its dearest operations, by JAX's profiler.

python -m scripts.profile --pool five --batch 128
python -m scripts.profile --pool pair --method kd --dtype bfloat16 --out results      # a trace for Perfetto, too

Milliseconds are those of one step, each operation's own. On a CPU several run at a time, and some on several cores, so
their sum is not the time of the step. What is idle is the share of the step in which the device computes nothing.
"""

import argparse
import contextlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

from orc_jax import allocator, commands
from scripts import hlo
from scripts.bench import markdown
from scripts.programs import POOLS, Program, prepare


class Event(NamedTuple):
    """An operation of a program, once."""

    name: str  # as in the text of the compiled program, or of the kernel where a device does not tell it
    start: float  # ns
    duration: float  # ns


def events_of(data: Any) -> list[Event]:
    """What the devices did, from a trace (`ProfileData`): operations by their names in the program."""
    found = []
    for plane in data.planes:
        on_device = plane.name.startswith("/device:")
        for line in plane.lines:
            if on_device and not line.name.startswith(("Stream", "XLA Ops")):
                continue  # summaries of the others
            for event in line.events:
                named = next((str(value) for key, value in event.stats if key == "hlo_op"), None)
                if (named or on_device) and event.duration_ns and not event.name.startswith("end: "):
                    name = re.sub(r"^%?([\w.-]+) = .*", r"\1", named or event.name)  # a TPU has the whole line
                    found.append(Event(name, event.start_ns, event.duration_ns))
    return found


def busy(events: Iterable[Event]) -> float:
    """The ns in which at least one operation runs."""
    total, end = 0.0, 0.0
    for event in sorted(events, key=lambda event: event.start):
        last = event.start + event.duration
        total += max(0.0, last - max(end, event.start))
        end = max(end, last)
    return total


def tables(
    events: Sequence[Event], instructions: Mapping[str, hlo.Instruction], steps: int, top: int
) -> tuple[list[dict], list[dict]]:
    """Rows by kind of operation, and of the `top` dearest operations, each with ms a step."""

    def rows(column: str, key_of: Callable[[str], str], count: int | None = None) -> list[dict]:
        took: dict[str, list[float]] = {}
        for event in events:
            took.setdefault(key_of(event.name), []).append(event.duration)
        whole = sum(event.duration for event in events)
        return [
            {column: key, "times": len(of) / steps, "ms": sum(of) / steps / 1e6, "share": sum(of) / whole}
            for key, of in sorted(took.items(), key=lambda item: -sum(item[1]))[:count]
        ]

    def kind_of(name: str) -> str:
        return hlo.kind(instructions[name]) if name in instructions else re.sub(r"[._]\d+$", "", name)

    dearest = rows("operation", str, top)
    for row in dearest:
        instruction = instructions.get(row["operation"])
        row["result"] = instruction.shape if instruction else ""
        source = re.search(r'op_name="([^"]*)"', instruction.rest) if instruction else None
        row["from"] = "/".join(source[1].split("/")[-3:]) if source else ""
    return rows("kind", kind_of), dearest


def profile(program: Program, steps: int, folder: Path) -> tuple[list[Event], float]:
    """Runs so many steps under the profiler, whose files go to `folder`: their operations, and the seconds of all."""
    jax.block_until_ready(program.run())
    with jax.profiler.trace(str(folder)):
        started = time.perf_counter()
        results = [program.run() for _ in range(steps)]
        jax.block_until_ready(results[-1])
        seconds = time.perf_counter() - started
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    # The warnings are of jaxlib's own types, with Python 3.13.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return events_of(ProfileData.from_file(str(newest))), seconds


def report(program: Program, steps: int, top: int, folder: Path) -> str:
    """The tables, as Markdown."""
    events, seconds = profile(program, steps, folder)
    instructions = {of.name: of for lines in hlo.parse(program.text() or "").computations.values() for of in lines}
    kinds, dearest = tables(events, instructions, steps, top)
    idle = max(0.0, 1.0 - busy(events) / 1e9 / seconds)
    told = f"{seconds / steps * 1000:.3g} ms a step under the profiler, of which the device is idle {idle:.0%}"
    return "\n\n".join([told, markdown(kinds), markdown(dearest)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default="five", choices=POOLS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--method", default="orc")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--top", type=int, default=20, help="operations that are told")
    parser.add_argument("--out", type=Path, help="a folder for the trace, which Perfetto and TensorBoard show")
    args = parser.parse_args()
    allocator.keep_pages()
    with commands.reported():
        program = prepare(POOLS[args.pool], args.batch, args.dtype, method=args.method, replicas=args.replicas)
    with contextlib.nullcontext(args.out) if args.out else tempfile.TemporaryDirectory() as folder:
        print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
        print(report(program, args.steps, args.top, Path(folder)))


if __name__ == "__main__":
    main()
