"""Puts small faults into the code, one at a time, and counts how many of them the tests see.

python -m scripts.mutate orc_jax/roles.py orc_jax/losses.py        # 40 faults; by tests/test_roles.py, test_losses.py
python -m scripts.mutate orc_jax/methods/orc.py --tests tests/test_orc.py tests/test_methods.py --count 0 --jobs 2

The faults go into copies of the repository, never into the working tree. Without `--tests`, orc_jax/a/b.py is tested by
test_b.py and test_a.py, wherever in tests/, or by all tests if there is neither. For a fault that is missed a test is
missing, or the fault changes nothing that counts: that is for a person to tell. A run that takes too long sees it.
"""

# pyright: reportAttributeAccessIssue=false
# Nodes of a syntax tree get attributes `start` and `end` here.
import argparse
import ast
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "runs", "build")
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--numprocesses=0"]
PYTEST += ["-o", "addopts=", "-m", "not slow and not gpu"]
OPERATORS = {
    **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")},
    **{ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and")},
    **{ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.Pow: ("**", "*")},
    **{ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&")},
    **{ast.Not: ("not ", ""), ast.USub: ("-", ""), ast.Invert: ("~", "")},
}
PAIRS = ["max min", "any all", "argmax argmin", "maximum minimum", "sum mean", "floor ceil", "zeros_like ones_like"]
NAMES = {old: new for pair in PAIRS for old, new in itertools.permutations(pair.split())}
# Calls whose arguments are not exchanged: that changes nothing, or fails at once.
SYMMETRIC = {"max", "min", "maximum", "minimum", "isinstance", "issubclass", "getattr", "hasattr"}
NEGATED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn, ast.Not)  # by OPERATORS already
MESSAGES = re.compile(r"\w*(Error|Warning)|require|require_choice|unknown")


@dataclasses.dataclass(frozen=True, order=True)
class Fault:
    """Where a file says `old`, from byte `start` on, it says `new`."""

    path: str
    line: int
    column: int
    start: int
    old: str
    new: str
    source: str  # the line without the fault

    def __str__(self) -> str:
        old, new = (" ".join(text.split())[:60] for text in (self.old, self.new))
        return f"{self.path}:{self.line}:{self.column}: {old!r} -> {new!r} in: {self.source[:100]}"


def name_of(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may get a fault: not texts, annotations and what goes into the message of an error."""
    match node:
        case ast.JoinedStr() | ast.Expr(value=ast.Constant()) | ast.Subscript(value=ast.Name(id="Literal")):
            return
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__")) | ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Call(func=function) if MESSAGES.fullmatch(name_of(function)):
            return
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                yield from nodes(child) if isinstance(child, ast.AST) else ()


def edits(node: Any, source: bytes) -> Iterator[tuple[int, int, str]]:
    """The faults of one node: from which byte to which, and what comes there."""
    operands, operators = [], []
    match node:
        case ast.Compare(left=left, comparators=others):
            operands, operators = [left, *others], node.ops
        case ast.BoolOp(values=values):
            operands, operators = values, [node.op] * len(values)
        case ast.BinOp(left=left, right=right) | ast.AugAssign(target=left, value=right):
            texts = (isinstance(x, ast.JoinedStr) or isinstance(getattr(x, "value", 0), str) for x in (left, right))
            operands, operators = [left, right], [] if any(texts) else [node.op]
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            old, new = OPERATORS[type(node.op)]
            yield node.start, node.start + len(old), new
        case ast.Constant(value=bool() as value):
            yield node.start, node.end, str(not value)
        case ast.Constant(value=int() as value):
            yield node.start, node.end, str(value + 1)
        case ast.Constant(value=float() as value):
            yield node.start, node.end, f"{value * 1.1:.9g}" if value else "0.1"
        case ast.Call(func=function, args=args, keywords=keywords):
            name = name_of(function)
            if name in NAMES and (isinstance(function, ast.Attribute) or name not in ("sum", "mean")):
                yield function.end - len(name), function.end, NAMES[name]
            if len(args) == 2 and name not in SYMMETRIC and not any(isinstance(x, ast.Starred) for x in args):
                (a, b), (c, d) = ((x.start, x.end) for x in args)
                yield a, d, (source[c:d] + source[b:c] + source[a:b]).decode()
            for keyword in keywords:
                comma = re.compile(rb"\s*,\s*").match(source, keyword.end)
                yield keyword.start, comma.end() if comma else keyword.end, ""
        case ast.If(test=test) | ast.IfExp(test=test) | ast.comprehension(ifs=[test]):
            if not isinstance(getattr(test, "ops", [getattr(test, "op", None)])[0], NEGATED):
                yield test.start, test.end, f"not ({source[test.start : test.end].decode()})"
        case ast.Expr(value=value) if not isinstance(value, ast.Yield | ast.YieldFrom):
            yield node.start, node.end, "pass"
        case ast.Assign(targets=targets, value=value):
            stored, loaded = ({x.id for y in z for x in ast.walk(y) if hasattr(x, "id")} for z in (targets, [value]))
            if stored & loaded:
                yield node.start, node.end, "pass"
    for left, operator, right in zip(operands, operators, operands[1:], strict=False):
        old, new = OPERATORS.get(type(operator), ("@", "@"))
        if (at := source.find(old.encode(), left.end, right.start)) >= 0:
            yield at, at + len(old), new


def faults_of(path: str, source: bytes) -> list[Fault]:
    """All faults for a file, without those that Python would not read or that leave it the same."""
    tree = ast.parse(source)
    lines = source.decode().split("\n")
    starts = [0, *itertools.accumulate(len(line.encode()) + 1 for line in lines)]
    node: Any  # gets two attributes
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            node.start = starts[node.lineno - 1] + node.col_offset
            node.end = starts[node.end_lineno - 1] + node.end_col_offset
    found, known = [], {ast.dump(tree)}
    for start, end, new in (edit for node in nodes(tree) for edit in edits(node, source)):
        with contextlib.suppress(SyntaxError):
            changed = ast.dump(ast.parse(source[:start] + new.encode() + source[end:]))
            if changed not in known:
                known.add(changed)
                line, column = source.count(b"\n", 0, start), start - source.rfind(b"\n", 0, start)
                old, context = source[start:end].decode(), lines[line].strip()
                found.append(Fault(path, line + 1, column, start, old, new, context))
    return found


def draw(faults: list[list[Fault]], count: int, seed: int) -> list[Fault]:
    """`count` faults, or all for 0, spread evenly over the files."""
    shuffled = [random.Random(f"{seed} {i}").sample(some, len(some)) for i, some in enumerate(faults)]
    return [fault for row in itertools.zip_longest(*shuffled) for fault in row if fault][: count or None]


def tests_of(path: str) -> tuple[str, ...]:
    """The tests that are named after a file or its folder, or else all."""
    names = dict.fromkeys((Path(path).stem, Path(path).parent.name))
    found = (test for name in names for test in sorted((ROOT / "tests").rglob(f"test_{name}.py")))
    return tuple(test.relative_to(ROOT).as_posix() for test in found) or ("tests",)


@dataclasses.dataclass
class Place:
    """A folder with a copy of the repository, and the tests that run there."""

    folder: Path
    timeout: float
    process: subprocess.Popen | None = None

    def stop(self) -> None:
        """Ends the tests, or what they have left running."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def run(self, tests: tuple[str, ...], cache: Path | None, keep: bool = False) -> str:
        """Returns "" if the tests pass, or else what failed. `keep` adds to the compiled programs in `cache`."""
        repository, temporary, log = (self.folder / name for name in ("repo", "tmp", "log"))
        for path in (temporary, repository / ".hypothesis"):
            shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir()
        # No bytecode: Python would take that of another fault for this one's, if it is of the same second and length.
        environment = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(temporary)}
        if cache:  # what a fault compiles goes with it: a killed process may have left half a program
            cache = cache if keep else shutil.copytree(cache, temporary / "cache", copy_function=os.link)
            environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        with log.open("w") as output:
            options = {"cwd": repository, "env": environment, "stdin": subprocess.DEVNULL, "start_new_session": True}
            self.process = subprocess.Popen([*PYTEST, *tests], stdout=output, stderr=output, **options)
        try:
            code = self.process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            return f"not over after {self.timeout:g} s"
        finally:
            self.stop()
            self.process.wait()
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
        return "" if code == 0 else failed[1] if failed else f"exit status {code}"

    def run_without_fault(self, tests: tuple[str, ...], cache: Path) -> Path | None:
        """Ends the program if the tests fail; returns the cache, or None for tests that only pass without one."""
        if not any(self.run(tests, cache, keep) for keep in (True, False)):
            return cache
        if failed := self.run(tests, None):
            raise SystemExit(f"{(self.folder / 'log').read_text(errors='replace')[-5000:]}\nwithout a fault: {failed}")
        return None

    def run_with_fault(self, fault: Fault, tests: tuple[str, ...], cache: Path | None) -> str:
        """Returns which test saw the fault, or ""."""
        path = self.folder / "repo" / fault.path
        source = path.read_bytes()
        path.write_bytes(source[: fault.start] + fault.new.encode() + source[fault.start + len(fault.old.encode()) :])
        try:
            # A program in the cache is found by all that it says, so it is never that of other code. But a test of
            # compiling itself might pass because of it: what no test saw is only missed if none sees it without, too.
            return self.run(tests, cache) or (self.run(tests, None) if cache else "")
        finally:
            path.write_bytes(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="that get the faults")
    parser.add_argument("--tests", nargs="+", help="files of tests, or what else pytest takes")
    parser.add_argument("--count", type=int, default=40, help="of faults; 0: all there are")
    parser.add_argument("--seed", type=int, default=0, help="of the choice among them")
    parser.add_argument("--timeout", type=float, default=600.0, help="of the tests, in seconds; then a fault is seen")
    parser.add_argument("--jobs", type=int, default=1, help="faults that are tried at a time, each in its own copy")
    parser.add_argument("--json", type=Path, help="a file for all the faults and what saw them")
    args = parser.parse_args()
    # A fault may ask for any amount of memory: it gets an error before the machine has none left.
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 + args.jobs)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    paths = list(dict.fromkeys(path.resolve().relative_to(ROOT).as_posix() for path in args.files))
    tests = {path: tuple(args.tests or tests_of(path)) for path in paths}
    results, missed = [], []
    with (
        tempfile.TemporaryDirectory(prefix="mutate", ignore_cleanup_errors=True) as name,
        ThreadPool(args.jobs) as pool,
    ):
        original, cache = Path(name) / "original", Path(name) / "cache"
        cache.mkdir()
        shutil.copytree(ROOT, original, symlinks=True, ignore=NOT_COPIED)
        places = [Place(Path(name) / str(i), args.timeout) for i in range(args.jobs)]
        for place in places:
            shutil.copytree(original, place.folder / "repo", symlinks=True)
        faults = [faults_of(path, (original / path).read_bytes()) for path in paths]
        drawn, free = draw(faults, args.count, args.seed), list(places)

        def try_one(fault: Fault) -> tuple[Fault, str]:
            place = free.pop()
            try:
                return fault, place.run_with_fault(fault, tests[fault.path], caches[tests[fault.path]])
            finally:
                free.append(place)

        try:
            caches = {some: places[0].run_without_fault(some, cache) for some in dict.fromkeys(tests.values())}
            print(f"{len(drawn)} of {sum(map(len, faults))} faults; the tests pass without", flush=True)
            for fault, seen_by in pool.imap_unordered(try_one, drawn):
                results.append(dataclasses.asdict(fault) | {"tests": tests[fault.path], "seen_by": seen_by})
                print(f"seen   {fault}  ({seen_by})" if seen_by else f"MISSED {fault}", flush=True)
                missed += [] if seen_by else [fault]
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1))
        finally:  # also where the program is told to stop
            pool.terminate()
            for place in places:
                place.stop()
    print(f"{len(results) - len(missed)} of {len(results)} faults seen", *sorted(missed), sep="\nMISSED ")


if __name__ == "__main__":
    main()
