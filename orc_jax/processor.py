"""What the processor of this machine is good at."""

import functools
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Instructions for products of bfloat16, as Linux calls them: of Intel and AMD, and of Arm.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether it has instructions for products of bfloat16; False where that is not told."""
    try:
        words = re.findall(r"\w+", CPUINFO.read_text(errors="replace"))
    except OSError:
        return False
    return not set(BFLOAT16).isdisjoint(words)
