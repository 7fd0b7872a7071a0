"""A compiled program, read: what it launches, moves and communicates. Counts from its text, no times.

A *launch* is an instruction that a device is given by itself: a fusion, a call of a library, a copy, a collective.
Those in a loop count as often as it runs, of the branches of a conditional the dearest counts.
"""

import collections
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}  # else by its name
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
# What names or waits, and is no work of its own.
NAMES = [
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
]
SILENT = (*NAMES, "async-update")  # and all that ends in "-done"
SLICES = ("dynamic-slice", "gather", "slice")
UNKNOWN_TRIPS = 1


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # as text: "f32[5,16]{1,0}", or a tuple of such
    op: str
    inside: str  # the text in the parentheses: operands, the number of a parameter, the value of a constant
    rest: str  # what follows: attributes

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r"%([\w.-]+)", self.inside)

    @property
    def bytes(self) -> float:
        """Of the result."""
        return shape_bytes(self.shape)

    def calls(self, attribute: str) -> list[str]:
        """The computations that an attribute names: `calls=%fused`, `branch_computations={%a, %b}`."""
        match = re.search(rf"\b{attribute}=(?:{{([^}}]*)}}|%?([\w.-]+))", self.rest)
        names = (match[1] or match[2] or "") if match else ""
        return [name.strip().lstrip("%") for name in names.split(",") if name.strip()]

    @property
    def config(self) -> dict[str, Any]:
        """What the compiler noted about it for its platform."""
        start = self.rest.find("backend_config=")
        if start < 0 or not self.rest[start + 15 :].startswith("{"):
            return {}
        return json.JSONDecoder().raw_decode(self.rest[start + 15 :])[0]


Computations = dict[str, list[Instruction]]


class Module(NamedTuple):
    """A compiled program."""

    computations: Computations
    entry: str


def shape_bytes(shape: str) -> float:
    """Bytes of an array or a tuple, from the text of its shape."""
    total = 0.0
    for dtype, sizes in re.findall(r"\b([a-z]+\d*[a-z\d]*)\[([\d,<= ]*)\]", shape):
        width = WIDTHS.get(dtype) or (int(match[1]) / 8 if (match := re.match(r"[a-z]+(\d+)", dtype)) else 0)
        total += width * math.prod(int(size) for size in re.findall(r"\d+", sizes))
    return total


def parse(text: str) -> Module:
    """The program that a compiler prints."""
    computations: Computations = {}
    entry, lines = "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and "->" in line:
            header = re.match(r"(ENTRY )?%?([\w.-]+)", line)
            assert header
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None and (instruction := _instruction(line)):
            lines.append(instruction)
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ") - 1
    shape, rest = rest[: end + 1], rest[end + 1 :].lstrip()
    op, _, _ = rest.partition("(")
    rest = rest[len(op) :]
    end = _closing(rest)
    return Instruction(match[1], shape, op, rest[1:end], rest[end + 1 :])


def _closing(text: str) -> int:
    """Where the parenthesis that `text` starts with is closed."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text) - 1


class Count(NamedTuple):
    """What a program does when it runs once."""

    launches: collections.Counter[str]  # by kind
    bytes: float  # read and written by the launches
    host_reads: int  # branches and loops whose course the host has to read from the device
    collectives: int
    collective_bytes: float
    cycles: float  # as the compiler of a TPU estimates them
    seconds: float  # as modelled: see `count`


def count(module: Module, bandwidth: float = math.inf, launch: float = 0.0) -> Count:
    """Counts a program. A launch is modelled to take the time its bytes take, and at least `launch` seconds.

    `bandwidth` is the device's, in bytes a second.
    """
    totals: dict[str, Any] = collections.defaultdict(float)
    launches: collections.Counter[str] = collections.Counter()
    for instruction, times, moved in _work(module, module.entry):
        name = kind(instruction)
        if name in ("conditional", "while"):
            totals["host_reads"] += times
            continue
        launches[name] += times
        totals["bytes"] += times * moved
        totals["seconds"] += times * max(moved / bandwidth, launch)
        if name.startswith(COLLECTIVES):
            totals["collectives"] += times
            totals["collective_bytes"] += times * instruction.bytes
        totals["cycles"] += times * _cycles(instruction)
    reads, collectives = int(totals["host_reads"]), int(totals["collectives"])
    return Count(
        launches,
        totals["bytes"],
        reads,
        collectives,
        totals["collective_bytes"],
        totals["cycles"],
        totals["seconds"],
    )


def _cycles(instruction: Instruction) -> float:
    return float(instruction.config.get("window_config", {}).get("estimated_cycles", 0)) or float(
        instruction.config.get("estimated_cycles", 0)
    )


def _work(module: Module, name: str) -> Iterator[tuple[Instruction, int, float]]:
    """Every launch of a computation, branch or loop, how often it runs, and the bytes it moves."""
    shapes = {instruction.name: instruction for instruction in module.computations[name]}
    for instruction in module.computations[name]:
        if instruction.op in SILENT or instruction.op.endswith("-done"):
            continue
        if instruction.op == "while":
            trips = instruction.config.get("known_trip_count", {}).get("n")
            if trips is None:
                yield instruction, 1, 0.0
            for inner in instruction.calls("body"):
                for one, times, moved in _work(module, inner):
                    yield one, times * int(trips or UNKNOWN_TRIPS), moved
        elif instruction.op == "conditional":
            yield instruction, 1, 0.0
            names = instruction.calls("branch_computations") or [
                *instruction.calls("true_computation"),
                *instruction.calls("false_computation"),
            ]
            branches = [list(_work(module, inner)) for inner in names]
            yield from max(branches, key=lambda found: sum(times * moved for _, times, moved in found))
        elif instruction.op == "call":
            for inner in instruction.calls("to_apply"):
                yield from _work(module, inner)
        elif instruction.op == "async-start" and (inner := instruction.calls("calls")):
            yield from _work(module, inner[0])
        else:
            yield instruction, 1, _moved(module, instruction, shapes)


def kind(instruction: Instruction) -> str:
    """What an instruction is to whoever counts: its operation, or what a custom call calls."""
    if instruction.op == "custom-call":
        match = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
        return f"custom-call {match[1]}" if match else "custom-call"
    return instruction.op.removesuffix("-start")


def _moved(module: Module, instruction: Instruction, shapes: Mapping[str, Instruction]) -> float:
    """Bytes that a launch reads and writes: all of its operands and its result, but of what it slices the slices."""
    inside = instruction.calls("calls")
    if instruction.op != "fusion" or not inside:
        read = sum(shapes[name].bytes for name in instruction.operands if name in shapes)
        if instruction.op in SLICES:
            return 2 * instruction.bytes
        if instruction.op == "dynamic-update-slice":
            return 2 * shapes[instruction.operands[1]].bytes
        return read + instruction.bytes
    body = module.computations[inside[0]]
    read = sum(_read(body, i, shapes[name].bytes) for i, name in enumerate(instruction.operands) if name in shapes)
    return read + _written(body, instruction)


def _read(body: list[Instruction], number: int, whole: float) -> float:
    """Bytes that a fusion reads of its operand `number`."""
    name = next((i.name for i in body if i.op == "parameter" and int(i.inside) == number), None)
    users = [i for i in body if name in i.operands]
    if users and all(i.op in SLICES and i.operands[0] == name for i in users):
        return min(whole, sum(i.bytes for i in users))
    if users and all(i.op == "dynamic-update-slice" and i.operands[0] == name for i in users):
        return 0.0  # written in place
    return whole


def _written(body: list[Instruction], fusion: Instruction) -> float:
    root = body[-1]
    if root.op == "dynamic-update-slice":
        return next(i.bytes for i in body if i.name == root.operands[1])
    return fusion.bytes
