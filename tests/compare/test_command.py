"""The command of a comparison: its flags, by both of its names."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def command(module, *arguments):
    """Runs the command as a person would."""
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("module", "arguments", "text"),
    [
        ("scripts.compare", ["--mode=evaluate"], "--mode is for one run; a comparison trains many"),
        ("orc_jax.compare", ["orc,kd"], "not understood: orc,kd. Overrides are written"),
        (
            "orc_jax.compare",
            ["--rows=kd/", "--sweep=orc.beta=0.1"],
            "--methods, --sweep, --ablate, --rows: give one of them",
        ),
        (
            "orc_jax.compare",
            ["--rows=kd/resnet57", "--out=nowhere"],
            "--rows='kd/resnet57' is not known. Did you mean kd/",
        ),
        (
            "orc_jax.compare",
            ["--sweep=orc.bta=1", "--out=nowhere"],
            "--sweep: field='orc.bta' is not known. Did you mean",
        ),
        (
            "orc_jax.compare",
            ["--ablate=orc.role_change=False", "--ablate=orc.beta=high", "--out=nowhere"],
            "--ablate: config.orc.beta=high: must be like 0.5",
        ),
        ("orc_jax.compare", ["--out=nowhere", "--workdir=docs"], "--out=nowhere and --workdir=docs: give --out alone"),
    ],
)
def test_mistakes_are_answered_with_one_message(module, arguments, text):
    done = command(module, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("orc_jax: ") and text in done.stderr
    assert done.stderr.count("\n") == 1 and not (ROOT / "nowhere").exists()
