"""Runs pip for scripts/setup.sh and says what it does: in a line that changes on a terminal, else a line now and then.

python scripts/told.py COMMAND ...

Only the standard library, since nothing is installed yet. If the command fails, the end of what it said is printed.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

EVERY = 2.5  # seconds between lines where there is no terminal
WIDTH = 79
KEPT = 25  # lines of a command that has failed

# What pip says, and what is made of it.
STEPS = [
    (r"Collecting ([\w.-]+)", "looking for {}"),
    (r"(?:Downloading|Using cached) (\S+ \([^)]*\))", "downloading {}"),
    (r"Processing \S*?([\w.-]+)\.whl", "reading {}"),
    (r"Building \w+ for (\S+)|Getting requirements to build \w+|Installing build dependencies", "building {}"),
    (r"Installing collected packages: (.*)", "unpacking {}"),
]


def step(line: str) -> str | None:
    """What a line of pip tells that it does; None if it tells nothing."""
    for pattern, text in STEPS:
        if found := re.match(r"\s*" + pattern, line):
            what = found[1] or "what has no wheel"
            return text.format(f"{what.count(',') + 1} packages" if "collected" in pattern else what)
    return None


def run(command: Sequence[str]) -> int:
    """Runs the command to its end; returns its exit status."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None  # it is a pipe
    lines, steps = [], ["starting pip"]

    def read(source=process.stdout) -> None:
        for line in source:
            lines.append(line)
            if told := step(line):
                steps.append(told)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    terminal, started, said = sys.stdout.isatty(), time.monotonic(), 0.0
    while process.poll() is None:
        now = time.monotonic()
        text = f"{now - started:4.0f} s  {steps[-1]}"[:WIDTH]
        if terminal:
            print(f"\r{text:{WIDTH}}", end="", flush=True)
        elif now - said >= EVERY:
            print(text, flush=True)
            said = now
        time.sleep(0.2)
    reader.join()
    if terminal:
        print("\r" + " " * WIDTH + "\r", end="", flush=True)
    if process.returncode:
        sys.stderr.writelines(lines[-KEPT:])
    else:
        print(f"installed in {time.monotonic() - started:.0f} s", flush=True)
    return process.returncode


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
