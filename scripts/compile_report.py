"""The training step of a pool, compiled for a GPU or a TPU that need not be there, and read. Models, not times.

python -m scripts.compile_report --targets h100 v5e --pools five default
python -m scripts.compile_report --targets h100 --devices 8 --batch 1024 --pools five --set batch_norm=local remat=True
python -m scripts.compile_report --targets v5e --config configs/cifar100.py --dtype bfloat16 --out report
python -m scripts.compile_report --targets h100 --pools one --set method=independent --replicas 1 5 10

Every figure is compared with the floor: the sum of the members' own training steps, each compiled alone in the same
way, and of the forward pass that the pivot teacher teaches with. Needed are the compilers: `pip install libtpu` for
TPUs, `pip install 'jax[cuda12]'` for GPUs; neither needs a device or a driver.

launches    what the device is given one by one; of branches the dearest, loops as often as they run
GB          what the launches read and write
host reads  conditionals and loops whose course the host has to read from the device
collectives and what each device gives to them, in MB
GiB         arguments and temporaries on each device, and what share of its memory both are
model       for a GPU the ms of a model in which a launch takes as long as its bytes, and 2 us at least; for a TPU the
            millions of cycles that its compiler estimates
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from orc_jax import config_files, flagging, parallel
from orc_jax.config import Resolved, default, resolve
from orc_jax.errors import UserError
from orc_jax.run import build
from scripts import targets
from scripts.bench import markdown
from scripts.hlo import Count, count, parse
from scripts.programs import POOLS, abstract_arguments, forward_of, random_images, resolved_pool, step_of
from scripts.targets import TARGETS, Gpu


class Compiled(NamedTuple):
    """A program for a target, and what it does."""

    seconds: float  # that it took to compile
    count: Count
    arguments: float  # bytes on a device
    temporaries: float


def compile_for(
    target: str, devices: Any, resolved: Resolved, size: int, *, forward_only: bool = False, replicas: int = 1
) -> Compiled:
    """The training step of a config, or its forward pass alone, compiled for `devices` of a target.

    `size` is that of the images, in pixels; of `replicas` there are several in the program.
    """
    run = build(resolved, random_images(1000, size), devices)
    step = forward_of(run) if forward_only else step_of(run, replicas=replicas)
    lowered = parallel.DataParallel(step, devices, donate=True).lower(*abstract_arguments(run, replicas))
    started = time.perf_counter()
    compiled = parallel.compiled(lowered, devices[0].platform)
    seconds = time.perf_counter() - started
    there = TARGETS[target]
    model = (there.bandwidth, targets.LAUNCH) if isinstance(there, Gpu) else ()
    memory: Any = compiled.memory_analysis()
    counted = count(parse(compiled.as_text() or ""), *model)
    return Compiled(seconds, counted, memory.argument_size_in_bytes, memory.temp_size_in_bytes)


def rows_of(target: str, name: str, resolved: Resolved, size: int, num_devices: int) -> list[dict[str, Any]]:
    """The rows of one pool on one target: its step, the floor, and the ratio of both."""
    devices = targets.devices_of(target, num_devices)
    pool = compile_for(target, devices, resolved, size)
    alone: list[tuple[int, Compiled]] = []
    fields = {key: resolved.config[key] for key in ("dtype", "batch_norm", "remat")} | {"method": "independent"}
    of = lambda names: resolved_pool(names, resolved.config.batch_size, num_devices, **fields)  # noqa: E731
    for architecture in dict.fromkeys(resolved.architectures):
        one = compile_for(target, devices, of([architecture]), size)
        alone.append((resolved.architectures.count(architecture), one))
    alone.append((1, compile_for(target, devices, of(resolved.architectures[:1]), size, forward_only=True)))
    kind = f"{num_devices} x {target}"
    ours, floor = _row(target, pool), {}
    for times, one in alone:
        for key, value in _row(target, one).items():
            floor[key] = floor.get(key, 0) + (times * value if isinstance(value, int | float) else 0)
    ratio = {key: ours[key] / floor[key] for key in ("launches", "GB", "model") if floor[key]}
    title = {"target": kind, "pool": name, "batch": resolved.config.batch_size, "dtype": resolved.config.dtype}
    for key in ("compile, s", "GiB", "of memory"):
        floor.pop(key)
    by_kind = ", ".join(f"{n} {kind}" for kind, n in pool.count.launches.most_common(8))
    return [
        title | {"program": "step"} | ours | {"by kind": by_kind},
        title | {"program": "floor"} | floor,
        title | {"program": "ratio"} | ratio,
    ]


def rows_of_replicas(
    target: str, name: str, resolved: Resolved, size: int, num_devices: int, counts: Sequence[int]
) -> list[dict[str, Any]]:
    """The rows of the step of one run, of several replicas of it, and of the ratios of these to one."""
    devices, rows = targets.devices_of(target, num_devices), []
    title = {"target": f"{num_devices} x {target}", "pool": name, "batch": resolved.config.batch_size}
    title |= {"method": resolved.config.method, "dtype": resolved.config.dtype}
    one = _row(target, compile_for(target, devices, resolved, size))
    for count_of in counts:
        ours = one if count_of == 1 else _row(target, compile_for(target, devices, resolved, size, replicas=count_of))
        ratios = {key: ours[key] / one[key] for key in ("launches", "GB", "model", "compile, s") if one[key]}
        rows.append(title | {"program": f"{count_of} replicas"} | ours)
        rows.append(title | {"program": "ratio to one"} | ratios)
    return rows


def _row(target: str, compiled: Compiled) -> dict[str, Any]:
    there, counted = TARGETS[target], compiled.count
    taken = compiled.arguments + compiled.temporaries
    return {
        "launches": counted.launches.total(),
        "GB": counted.bytes / 1e9,
        "model": counted.seconds * 1e3 if isinstance(there, Gpu) else counted.cycles / 1e6,
        "host reads": counted.host_reads,
        "collectives": counted.collectives,
        "MB": counted.collective_bytes / 1e6,
        "GiB": taken / 2**30,
        "of memory": f"{taken / there.memory:.1%}",
        "compile, s": compiled.seconds,
    }


def given(args: argparse.Namespace) -> dict[str, Resolved]:
    """The pools and configs that were asked for, by name."""
    changes = flagging.override(default(), ["", *(f"--config.{item}" for item in args.set)])
    changes |= {"dtype": args.dtype} if args.dtype else {}
    found = {name: resolved_pool(POOLS[name], args.batch or 128, args.devices, **changes) for name in args.pools}
    if args.config:
        config: ConfigDict = config_files.load(args.config)
        changes |= {"batch_size": args.batch} if args.batch else {}
        config.update_from_flattened_dict(changes)
        found[args.config] = resolve(config, args.devices)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["h100", "v5e"], choices=TARGETS)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--pools", nargs="*", default=[], choices=POOLS)
    parser.add_argument("--config", help="a config file instead of a named pool")
    parser.add_argument("--batch", type=int, help="images in the global batch; 128 if not that of a config")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--replicas", type=int, nargs="+", help="instead of the floor: several runs in one program")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of the config")
    parser.add_argument("--out", type=Path, help="folder for compile_report.md and compile_report.json")
    args = parser.parse_args(argv)
    if not args.pools and not args.config:
        args.pools = ["five", "default"]
    command = shlex.join(["python", "-m", "scripts.compile_report", *sys.argv[1:]])
    title = f"`{command}`; compiled on a CPU, not run; jax {jax.__version__}, {date.today()}"
    print(title + "\n", flush=True)
    rows: list[dict[str, Any]] = []
    try:
        pools = given(args)
    except UserError as error:
        parser.error(str(error))
    for target in args.targets:
        for name, resolved in pools.items():
            try:
                shared = (target, name, resolved, args.size, args.devices)
                found = rows_of_replicas(*shared, args.replicas) if args.replicas else rows_of(*shared)
            except UserError as error:
                found = [{"target": f"{args.devices} x {target}", "pool": name, "program": str(error)}]
            print(markdown(found) + "\n", flush=True)
            rows += found
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "compile_report.md").write_text(f"{title}\n\n{markdown(rows)}\n")
        (args.out / "compile_report.json").write_text(json.dumps({"title": title, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
