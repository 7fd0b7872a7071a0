"""Trains a small pool twice: left alone, and killed every few seconds. Both have to end the same, bit for bit.

python -m scripts.soak                                   # some thousands of steps; three minutes on two cores
python -m scripts.soak --epochs 3 --kills 2 --method dml # the short version that the tests run

Most kills are SIGKILL, at any moment, a save among them; every fourth is SIGTERM, after which the run saves and leaves.
Checkpoints are made every few steps. The run that is left alone has to keep its memory: what its process holds at the
end is compared with what it held after a quarter of its steps.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import logging

from orc_jax.config import reopen
from orc_jax.data import sets
from orc_jax.run import abstract_state, build
from orc_jax.workdir import checkpoint, metrics, record

FIELDS = {
    "teacher": "plane2",
    "student": "plane2",
    "num_networks": 3,
    "pretrain_epochs": 0,
    "warmup_epochs": 0,
    "batch_size": 32,
    "eval_every_epochs": 1,
    "checkpoint_every_steps": 7,
    "log_every_steps": 10,
}


def start(workdir: Path, fields: dict[str, object], cache: Path) -> subprocess.Popen:
    """The training in `workdir`, as a process."""
    flags = [f"--workdir={workdir}", f"--compilation_cache={cache}"]
    flags += [f"--config.{name}={value}" for name, value in fields.items()]
    output = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen([sys.executable, "-m", "orc_jax.main", *flags], stdout=output, stderr=output)


def steps_of(workdir: Path) -> int:
    """The latest step that is on disk."""
    folder = workdir / checkpoint.CHECKPOINTS
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0


def memory_of(process: subprocess.Popen) -> float:
    """What a process holds, in MiB."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0  # it has just ended


def left_alone(workdir: Path, fields: dict[str, object], cache: Path) -> list[tuple[int, float]]:
    """Trains without a break; returns (step, MiB) at moments of the run."""
    samples, process = [], start(workdir, fields, cache)
    while process.poll() is None:
        samples.append((steps_of(workdir), memory_of(process)))
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}: see {workdir}.log")
    return samples


def killed(
    workdir: Path, fields: dict[str, object], cache: Path, kills: int, seconds: float, rng: random.Random
) -> int:
    """Trains with up to `kills` breaks; returns how many there were."""
    count = 0
    while True:
        process = start(workdir, fields, cache)
        if count < kills:
            # From the moment it goes on, not from its start, or it might never get anywhere.
            before, deadline = steps_of(workdir), time.monotonic() + 300
            while steps_of(workdir) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, seconds))
            process.send_signal(signal.SIGTERM if count % 4 == 3 else signal.SIGKILL)
        code = process.wait()
        print(f"  {count + 1}: ended with {code} at step {steps_of(workdir)}", flush=True)
        if code == 0:
            return count
        if code not in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):
            raise SystemExit(f"the run ended with {code}: see {workdir}.log")
        count += 1


def arrays_of(workdir: Path) -> dict[str, np.ndarray]:
    """All that the last checkpoint holds."""
    resolved = reopen(record.require(workdir).fields, trusted=())
    run = build(resolved, sets.load(resolved.config, print), jax.local_devices()[:1])
    with checkpoint.open_manager(workdir, create=False) as manager:
        state = checkpoint.restore(manager, manager.latest_step(), abstract_state(run), run.sharding)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}


def compare(workdir: Path, other: Path) -> list[str]:
    """What differs between two runs."""
    here, there = arrays_of(workdir), arrays_of(other)
    differing = [name for name in here if not np.array_equal(here[name], there[name], equal_nan=True)]
    if (workdir / metrics.METRICS).read_bytes() != (other / metrics.METRICS).read_bytes():
        differing.append(metrics.METRICS)
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="orc")
    parser.add_argument("--epochs", type=int, default=80, help="of 45 steps each")
    parser.add_argument("--kills", type=int, default=40, help="at most; the run may come to its end before")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="between the first new checkpoint and a kill, at most"
    )
    parser.add_argument("--growth", type=float, default=32.0, help="of the memory that is accepted, in MiB")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    fields = FIELDS | {"method": args.method, "num_epochs": args.epochs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = left_alone(folder / "whole", fields, folder / "cache")
        total = steps_of(folder / "whole")
        quarter = [memory for step, memory in samples if total / 4 < step <= total / 2]
        end = [memory for step, memory in samples if total * 3 / 4 < step and memory]
        print(f"{args.method}: {total} steps left alone", flush=True)
        breaks = killed(folder / "run", fields, folder / "cache", args.kills, args.seconds, random.Random(args.seed))
        differing = compare(folder / "run", folder / "whole")
        aside = len(list((folder / "run").rglob(f"{checkpoint.DAMAGED}/*")))
        print(
            f"{breaks} kills, {aside} damaged checkpoints; differing from the run left alone: {differing or 'nothing'}"
        )
        if differing or aside:
            raise SystemExit(1)
        if quarter and end:
            growth = max(end) - max(quarter)
            print(f"memory: {max(quarter):.0f} MiB in the second quarter, {max(end):.0f} MiB in the last")
            if growth > args.growth:
                raise SystemExit(f"the memory grows: by {growth:.0f} MiB")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
