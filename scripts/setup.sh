#!/usr/bin/env bash
# Makes .venv in the repository and installs orc_jax and its requirements there: the CUDA build of JAX where there is an
# NVIDIA GPU, the CPU build elsewhere. Nothing is done again while the requirements stay the same.
#   scripts/setup.sh [further requirements file ...]
# PYTHON chooses the interpreter (3.11 to 3.14; without it the newest there is), VENV the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

suits() { # an interpreter of a version for which all requirements have wheels, and which can make an environment
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}
python=${PYTHON:-}
if [ -n "$python" ] && ! suits "$python"; then
  echo "setup.sh: PYTHON=$python: must be a Python 3.11 to 3.14 with venv (Debian, Ubuntu: apt install python3-venv)" >&2
  exit 2
fi
for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
  [ -n "$python" ] && break
  suits "$candidate" && python=$candidate
done
if [ -z "$python" ]; then
  echo "setup.sh: needs Python 3.11 to 3.14 with venv (Debian, Ubuntu: apt install python3-venv); set PYTHON to one" >&2
  exit 2
fi

wanted=$(cat requirements.txt "$@" | { if nvidia-smi >/dev/null 2>&1; then cat; else sed 's/jax\[cuda12\]/jax/'; fi; })
wanted+=$'\n'"# orc_jax itself: $(cat pyproject.toml setup.py | cksum)"
if [ "$(cat "$venv/installed.txt" 2>/dev/null)" != "$wanted" ]; then
  echo "Installing into $venv with $("$python" --version): $(grep -c '^[a-z]' <<<"$wanted") packages and what they need ..."
  "$python" -m venv "$venv"
  printf '%s\n' "$wanted" >"$venv/wanted.txt"
  pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
  [ -t 1 ] || pip+=(--progress-bar off)
  "${pip[@]}" -r "$venv/wanted.txt"
  "${pip[@]}" --quiet --no-deps --editable .
  mv "$venv/wanted.txt" "$venv/installed.txt"
fi
