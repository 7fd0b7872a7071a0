"""What an ORC iteration costs, what it could cost at best, and what the obvious PyTorch loop takes, on any backend.

python -m scripts.bench                                        # all parts; minutes on a GPU, an hour on two CPU cores
python -m scripts.bench --parts iteration --pools five --dtypes float32 --no_torch
python -m scripts.bench --parts sizes batches devices steps

Images are random, 32x32 if not said otherwise, of 100 classes. The programs of a table run in turn, so that a busy
machine is unfair to all alike: compare figures of one table only. CPU seconds are those of all cores together, which
hardly see what else runs on the machine. Memory is kept as in a training (see orc_jax/allocator.py). The parts:

iteration  each pool and type. The floor is the sum of the members' own training steps, each compiled alone, and of the
           forward pass that the pivot teacher teaches with. "vmap" is the same iteration with JAX's own convolution.
sizes      pools of 3 ... 16 ResNet-20s
stack      one member, and a stack of five, of `--network`, that learn from the labels alone
batches    the pool `five` at batches of 32 ... 512
devices    the pool `five`, one global batch, on 1, 2, 4 and 8 devices (on CPU virtual ones, which share the cores)
steps      one step per call, and ten in a `lax.scan`
replicas   one run, and five in one program, of `OF_REPLICAS`
memory     what a step takes besides its arguments, as the compiler says and as measured, with and without
           `config.remat`, by pool and batch
"""

import argparse
import contextlib
import ctypes
import functools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import jax

from orc_jax import allocator
from scripts.programs import POOLS, Program, plain_vmap, prepare

SIZES = (3, 5, 8, 16)  # a pool of two has one student, and nobody to promote
# Operations and bytes per second of a device, as its maker states them (dense; float32 is TF32 on tensor cores).
PEAKS = {
    "H100": {"float32": 495e12, "bfloat16": 989e12, "bytes": 3.35e12},
    "H200": {"float32": 495e12, "bfloat16": 989e12, "bytes": 4.8e12},
    "A100": {"float32": 156e12, "bfloat16": 312e12, "bytes": 2.0e12},
}


Name = TypeVar("Name")


class Seconds(NamedTuple):
    """What a program takes."""

    wall: float
    cpu: float  # computed by its process, on all cores together


def measure(
    programs: Mapping[Name, Callable[[], object]],
    repeats: int,
    clocks: Mapping[Name, Callable[[], float]] = MappingProxyType({}),
) -> dict[Name, Seconds]:
    """Median seconds of each program, their runs interleaved.

    Each run follows one of the same program that is not timed, as in training: another may have taken the memory and
    the caches. A GPU gets ten calls at a time. `clocks` tell the CPU seconds of programs that run in other processes.
    """
    calls = 1 if jax.default_backend() == "cpu" else 10
    times: dict[Name, list[Seconds]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            clock = clocks.get(name, time.process_time)
            jax.block_until_ready(program())
            started, computed = time.perf_counter(), clock()
            results = [program() for _ in range(calls)]
            jax.block_until_ready(results[-1])
            wall = time.perf_counter() - started
            times[name].append(Seconds(wall / calls, (clock() - computed) / calls))
    return {name: Seconds(*map(statistics.median, zip(*found, strict=True))) for name, found in times.items()}


def floor_of(architectures: Sequence[str], alone: dict[str, Seconds]) -> Seconds:
    """Seconds of the members' own steps and the pivot teacher's forward pass, from the seconds of each."""
    parts = [*(alone[f"step of {name}"] for name in architectures), alone["forward of the pivot teacher"]]
    return Seconds(*map(sum, zip(*parts, strict=True)))


def roofline(program: Program, dtype: str) -> float | None:
    """The seconds that the device's peaks allow, or None for a device that `PEAKS` does not know."""
    kind = jax.devices()[0].device_kind
    peaks = next((peaks for name, peaks in PEAKS.items() if name in kind), None)
    if peaks is None:
        return None
    return max(program.flops / peaks[dtype], program.bytes / peaks["bytes"])


@contextlib.contextmanager
def torch_process(architectures: Sequence[str], batch: int, dtype: str) -> Iterator[Callable[[str], float]]:
    """Opens a process of `scripts.bench_torch`; yields a function that asks it what that file says, and its answer."""
    command = [sys.executable, "-m", "scripts.bench_torch", ",".join(architectures), str(batch), dtype]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(what: str) -> float:
            assert process.stdin is not None and process.stdout is not None
            print(what, file=process.stdin, flush=True)
            if not (answer := process.stdout.readline()):
                raise RuntimeError("the process of PyTorch ended; --no_torch leaves it out")
            return float(answer)

        yield ask


def iteration(args: argparse.Namespace) -> list[dict]:
    """The rows of the first table."""
    rows = []
    for pool in args.pools:
        architectures, batch = POOLS[pool], args.batch
        for dtype in args.dtypes:
            ours = {"after": prepare(architectures, batch, dtype), "before": None}
            ours["before"] = prepare(architectures, batch, dtype, variant="before")
            alone = {
                f"step of {name}": prepare([name], batch, dtype, method="independent").run
                for name in dict.fromkeys(architectures)
            }
            pivot = prepare(architectures[:1], batch, dtype, method="independent", forward_only=True)
            alone["forward of the pivot teacher"] = pivot.run
            others = {"eager": "PyTorch, eager"} if args.torch else {}
            if args.torch and args.torch_compile:
                others["compiled"] = "PyTorch, torch.compile"
            with contextlib.ExitStack() as processes:
                runs: dict[str, Callable[[], object]] = {name: program.run for name, program in ours.items()} | alone
                clocks: dict[str, Callable[[], float]] = {}
                for kind, name in others.items():
                    ask = processes.enter_context(torch_process(architectures, batch, dtype))
                    runs[name], clocks[name] = functools.partial(ask, kind), functools.partial(ask, "clock")
                seconds = measure(runs, args.repeats, clocks)
            floor = floor_of(architectures, seconds)
            if args.vmap:
                with plain_vmap():
                    ours["plain vmap"] = prepare(architectures, batch, dtype)
                seconds |= measure({"plain vmap": ours["plain vmap"].run}, 1)
            for name in [*ours, *others.values()]:
                program = ours.get(name)
                row = {"pool": pool, "dtype": dtype, "program": name} | _columns(seconds[name])
                row |= {"images/s": batch / seconds[name].wall, "of the floor": seconds[name].wall / floor.wall}
                row["CPU of the floor"] = seconds[name].cpu / floor.cpu
                if program:
                    row |= {"GiB": program.memory / 2**30, "compile, s": program.compile_seconds}
                    if best := roofline(program, dtype):
                        row["of the roofline"] = seconds[name].wall / best
                rows.append(row)
            row = {"pool": pool, "dtype": dtype, "program": "floor"} | _columns(floor)
            rows.append(row | {"of the floor": 1.0, "CPU of the floor": 1.0})
    return rows


def _columns(seconds: Seconds) -> dict[str, float]:
    return {"seconds": seconds.wall, "CPU seconds": seconds.cpu}


def scaling(name: str, programs: dict[int, Program], per: Callable[[int], float], repeats: int) -> list[dict]:
    """Rows of a table over `name`, with the seconds relative to growth in proportion to `per`."""
    seconds = measure({str(n): program.run for n, program in programs.items()}, repeats)
    first = next(iter(programs))
    unit = seconds[str(first)].wall / per(first)
    return [
        {name: n}
        | _columns(seconds[str(n)])
        | {
            "of proportional": seconds[str(n)].wall / (unit * per(n)),
            "GiB": program.memory / 2**30,
            "compile, s": program.compile_seconds,
        }
        for n, program in programs.items()
    ]


def sizes(args: argparse.Namespace) -> list[dict]:
    programs = {n: prepare(["resnet20"] * n, args.batch) for n in SIZES}
    return scaling("members", programs, lambda n: n, args.repeats)


def stack(args: argparse.Namespace) -> list[dict]:
    programs = {n: prepare([args.network] * n, args.batch, method="independent") for n in (1, 5)}
    return scaling("members", programs, lambda n: n, args.repeats)


def batches(args: argparse.Namespace) -> list[dict]:
    programs = {n: prepare(POOLS["five"], n) for n in (32, 64, 128, 256, 512)}
    return scaling("batch", programs, lambda n: n, args.repeats)


def devices(args: argparse.Namespace) -> list[dict]:
    if jax.default_backend() == "cpu" and len(jax.devices()) == 1:
        # The number of virtual devices is fixed when JAX starts.
        command = [sys.executable, "-m", "scripts.bench", "--parts", "devices", "--json"]
        command += ["--batch", str(args.batch), "--repeats", str(args.repeats)]
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        result = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, check=True)
        return json.loads(result.stdout)["devices"]
    counts = [n for n in (1, 2, 4, 8) if n <= len(jax.devices())]
    programs = {n: prepare(POOLS["five"], args.batch, num_devices=n) for n in counts}
    on_cpu = jax.default_backend() == "cpu"
    return scaling("devices", programs, lambda n: 1.0 if on_cpu else 1 / n, args.repeats)


def steps(args: argparse.Namespace) -> list[dict]:
    programs = {n: prepare(POOLS["five"], args.batch, num_steps=n) for n in (1, 10)}
    return scaling("steps per call", programs, lambda n: n, args.repeats)


def replicas(args: argparse.Namespace) -> list[dict]:
    rows = []
    for pool, method in OF_REPLICAS.items():
        programs = {n: prepare(POOLS[pool], args.batch, method=method, replicas=n) for n in (1, 5)}
        title = {"pool": pool, "method": method}
        rows += [title | row for row in scaling("replicas", programs, lambda n: n, args.repeats)]
    return rows


def memory(args: argparse.Namespace) -> list[dict]:
    rows = []
    for pool, size, batch in args.memory:
        programs = {remat: prepare(POOLS[pool], batch, size=size, remat=remat) for remat in (True, False)}
        # the smaller program first: a GPU tells the highest peak so far
        peaks = {remat: peak_of(program.run) for remat, program in programs.items()}
        seconds = measure({remat: program.run for remat, program in programs.items()}, args.repeats)
        for remat, program in reversed(programs.items()):
            row = {"pool": pool, "pixels": size, "batch on a device": batch, "remat": remat}
            row["GiB, arguments"] = program.arguments / 2**30
            row["GiB besides, compiler"] = (program.memory - program.arguments) / 2**30
            if peaks[remat] is not None:
                row["GiB besides, measured"] = peaks[remat] / 2**30
            rows.append(row | _columns(seconds[remat]))
    return rows


def peak_of(run: Callable[[], object]) -> float | None:
    """The bytes that a run takes at its peak, beyond those in use before. On a GPU of the device, else of the process.

    None where neither tells.
    """
    device, status = jax.devices()[0], Path("/proc/self/status")
    if stats := device.memory_stats():
        jax.block_until_ready(run())
        return device.memory_stats()["peak_bytes_in_use"] - stats["bytes_in_use"]
    if not status.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the process is what it has now
    kib = lambda key: int(status.read_text().split(f"{key}:")[1].split()[0])  # noqa: E731
    before = kib("VmRSS")
    jax.block_until_ready(run())
    return (kib("VmHWM") - before) * 1024


def markdown(rows: list[dict]) -> str:
    """A table with a column for every key that occurs."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: float | int | str) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


PARTS = {
    "iteration": iteration,
    "sizes": sizes,
    "stack": stack,
    "batches": batches,
    "devices": devices,
    "steps": steps,
    "replicas": replicas,
    "memory": memory,
}
OF_REPLICAS = {"one": "independent", "pair": "kd", "five": "orc"}  # pools, and how each is trained
MEMORY = (  # pool, pixels, batch
    *(("five", 32, batch) for batch in (32, 128, 512)),
    *(("default", 32, batch) for batch in (32, 128)),
    *(("imagenet", 224, batch) for batch in (8, 32)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--pools", nargs="+", default=["default", "five", "wide"], choices=POOLS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--network", default="deit_tiny_patch4_32", help="of the part `stack`")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no_torch", dest="torch", action="store_false", help="leave PyTorch out")
    parser.add_argument("--no_torch_compile", dest="torch_compile", action="store_false")
    parser.add_argument("--no_vmap", dest="vmap", action="store_false", help="leave the plain vmap out, slow on CPU")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--out", type=Path, help="folder for bench.md and bench.json")
    parser.set_defaults(memory=MEMORY)
    args = parser.parse_args()
    allocator.keep_pages()
    device = f"{len(jax.devices())} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    command = shlex.join(["python", "-m", "scripts.bench", *sys.argv[1:]])
    tunables = os.environ.get("GLIBC_TUNABLES")
    command = f"GLIBC_TUNABLES={tunables} {command}" if tunables else command
    title = f"`{command}`, batch {args.batch}; {device}, jax {jax.__version__}, {date.today()}"
    tables = {part: PARTS[part](args) for part in args.parts}
    text = "\n\n".join([title, *(f"{part}\n\n{markdown(rows)}" for part, rows in tables.items())])
    data = json.dumps({"title": title} | tables, indent=1)
    print(data if args.json else text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "bench.md").write_text(text + "\n")
        (args.out / "bench.json").write_text(data + "\n")


if __name__ == "__main__":
    main()
