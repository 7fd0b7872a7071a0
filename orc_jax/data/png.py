"""PNG as libpng writes it, which TensorFlow and so TFDS encode images with: the same bytes, without either.

A PNG decodes to the same pixels whatever wrote it. To write the same file takes libpng's choice of a filter for every
row, and its settings of zlib. Where Python's zlib is another implementation (zlib-ng), only the pixels are the same.
"""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL, MEMORY, STRATEGY = 6, 9, zlib.Z_FILTERED


def encode(images: np.ndarray) -> list[bytes]:
    """Images as PNG. `images` are uint8 `[n, height, width, 3]`."""
    _, height, width, _ = images.shape
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return [SIGNATURE + header + _chunk(b"IDAT", _deflated(rows)) + _chunk(b"IEND", b"") for rows in _filtered(images)]


def _filtered(images: np.ndarray) -> np.ndarray:
    """Rows with the number of their filter before them: uint8 `[n, height, 1 + 3 * width]`.

    Of the five filters a row gets the first of those whose bytes, taken as signed, have the least sum of magnitudes.
    """
    count, height, width, channels = images.shape
    rows = images.reshape(count, height, width * channels).astype(np.int16)
    up = np.pad(rows[:, :-1], ((0, 0), (1, 0), (0, 0)))
    left = np.pad(rows[:, :, :-channels], ((0, 0), (0, 0), (channels, 0)))
    corner = np.pad(up[:, :, :-channels], ((0, 0), (0, 0), (channels, 0)))
    # Paeth's predictor: whichever of the three is closest to left + up - corner.
    to_left, to_up, to_corner = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    nearest = np.where(to_up <= to_corner, up, corner)
    nearest = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
    filtered = np.stack([rows, rows - left, rows - up, rows - (left + up) // 2, rows - nearest]).astype(np.uint8)
    costs = np.minimum(filtered, 256 - filtered.astype(np.int16)).sum(-1)
    best = costs.argmin(0)
    chosen = np.take_along_axis(filtered, best[None, ..., None], 0)[0]
    return np.concatenate([best[..., None].astype(np.uint8), chosen], -1)


def _deflated(rows: np.ndarray) -> bytes:
    # libpng takes the smallest window that the data and zlib's look-ahead of 262 bytes fit in.
    window = min(15, max(9, (rows.size + 262 - 1).bit_length()))
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, window, MEMORY, STRATEGY)
    return compressor.compress(rows.tobytes()) + compressor.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
