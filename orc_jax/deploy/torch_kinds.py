"""What a file is that is no checkpoint, told by what it begins with, and what to do then."""

import json
import tarfile
import zipfile
from pathlib import Path

HEAD = 4096  # bytes that are looked at
BEGINNINGS = {  # of a file, and what it is
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: git lfs pull, or download it again",
    b"\x89HDF": "an HDF5 file, as Keras writes them: only checkpoints of PyTorch are read",
    b"\x93NUMPY": "a NumPy array: only checkpoints of PyTorch and safetensors are read",
    b"GGUF": "a GGUF file: only checkpoints of PyTorch and safetensors are read",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"%PDF": "a PDF document",
}
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")
STATE_DICT = 'torch.save(network.state_dict(), "weights.pth")'


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever it is called."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def foreign(path: Path) -> str | None:
    """What a file is that is neither safetensors nor a checkpoint of arrays, and what to do; None if not known."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file: its download or copy has failed"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, kind in BEGINNINGS.items():
        if text.startswith(beginning) or head.startswith(beginning):
            return kind
    if text.lower().startswith(PAGES):
        return "a web page, not the file itself: download it again, with the link that a browser saves it by"
    if text[:1] in (b"{", b"["):
        return _json(path)
    if zipfile.is_zipfile(path):
        return _archive(path)
    if not head.strip(b"\0"):  # which tarfile takes for an archive without files
        return "a file of zeros: its download or copy has failed"
    if head.startswith(b"PK\3\4"):
        return "an archive without its end, as of a checkpoint that was cut off: download or copy it again"
    if head.isascii() and head.decode().replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return f"text, not weights: {head.decode().split(chr(10))[0][:60]!r}"
    return (
        "a tar archive: unpack it first, or name a file in it" if head[257:262] == b"ustar" or _is_tar(path) else None
    )


def _json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return None
    if isinstance(content, dict) and isinstance(shards := content.get("weight_map"), dict):
        return f"an index of shards: the weights are in {', '.join(sorted(set(map(str, shards.values()))))[:200]}"
    return "text in JSON, not weights"


def _archive(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    parts = [name.partition("/")[2] for name in names]
    if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
        return (
            f'a TorchScript program: save its weights in PyTorch, network = torch.jit.load("{path.name}"), {STATE_DICT}'
        )
    if any(
        name.endswith("exported_program.json") or part.startswith("models/")
        for name, part in zip(names, parts, strict=True)
    ):
        return f"an exported program of PyTorch: save the weights of its network, {STATE_DICT}"
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy arrays (.npz): only checkpoints of PyTorch and safetensors are read"
    if "data.pkl" in parts:
        return None
    files = [name for name in names if not name.endswith("/")]
    return f"a zip archive: unpack it first, or name a file in it (it has {', '.join(files)[:200] or 'none'})"


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, ValueError):
        return False
