#!/usr/bin/env bash
# Makes .venv in the repository and installs orc_jax and its requirements there: the CUDA build of JAX where there is an
# NVIDIA GPU, the CPU build elsewhere. Nothing is done again while the requirements stay the same.
#   scripts/setup.sh [further requirements file ...]
# PYTHON chooses the interpreter (3.11 to 3.14; without it that of .venv, or the newest there is), VENV the folder, JAX
# the build: cpu, cuda12, tpu, or cuda12,tpu.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

fail() {
  echo "setup.sh: $1" >&2
  exit 2
}

# What keeps an interpreter from being taken: nothing, or a reason. All requirements have wheels for these versions.
reason() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' >/dev/null 2>&1 || { echo "it does not run"; return; }
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' ||
    { echo "it is $("$1" --version 2>&1)"; return; }
  "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
    echo "it cannot make environments (Debian, Ubuntu: apt install $(basename "$1")-venv)"
}

python=${PYTHON:-}
if [ -n "$python" ]; then
  why=$(reason "$python")
  [ -z "$why" ] || fail "PYTHON=$python: must be a Python 3.11 to 3.14, and $why"
else
  refused=
  for candidate in "$venv/bin/python" python3.14 python3.13 python3.12 python3.11 python3; do
    command -v "$candidate" >/dev/null || continue
    why=$(reason "$candidate")
    [ -n "$why" ] || { python=$candidate; break; }
    refused+="; $candidate: $why"
  done
  [ -n "$python" ] || fail "needs a Python 3.11 to 3.14 on PATH, or as PYTHON=...$refused"
fi

case ${JAX:=$(if nvidia-smi >/dev/null 2>&1; then echo cuda12; else echo cpu; fi)} in
  cpu) jax='jax' size='1.1 GB on disk, of which 300 MB are downloaded' ;;
  tpu) jax='jax[tpu]' size='1.7 GB on disk, of which 500 MB are downloaded' ;;
  cuda12 | cuda12,tpu) jax="jax[$JAX]" size='7 GB on disk, of which 3 GB are downloaded' ;;
  *) fail "JAX=$JAX: must be cpu, cuda12, tpu, or cuda12,tpu" ;;
esac
wanted=$(cat requirements.txt "$@" | sed "s/^jax\[cuda12\]/$jax/")
key="$wanted"$'\n'"# orc_jax itself, $("$python" --version): $(cat pyproject.toml setup.py | cksum)"
if [ "$(cat "$venv/installed.txt" 2>/dev/null)" != "$key" ]; then
  echo "Installing orc_jax and what it needs into $venv with $("$python" --version), JAX for $JAX: about $size$(
    [ $# -eq 0 ] || echo "; and what $* asks for")"
  # An environment of another Python would be left half as it was.
  if [ -d "$venv/bin" ] && [ "$("$venv/bin/python" --version 2>&1)" != "$("$python" --version)" ]; then
    echo "$venv has another Python: it is made anew"
    rm -rf "$venv"
  fi
  "$python" -m venv "$venv"
  printf '%s\n' "$wanted" >"$venv/wanted.txt"
  # To compile all of it takes five times as long as the rest.
  "$venv/bin/python" scripts/told.py "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    --no-compile -r "$venv/wanted.txt" --editable . || fail "pip failed with $("$python" --version); PYTHON=... takes another"
  # What the commands import is compiled here, or the first of them would do it, and every one of them where Python is
  # told to keep nothing.
  echo "Compiling what the commands import ..."
  for imported in "orc_jax.training, orc_jax.describe" "sklearn.datasets, sklearn.manifold, matplotlib.pyplot"; do
    env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c "import $imported" &
  done
  wait
  printf '%s\n' "$key" >"$venv/installed.txt"
fi
