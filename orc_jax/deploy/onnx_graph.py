"""A JAX function of one batch of images as an ONNX model, from its jaxpr.

Covers what evaluation of the networks here consists of, and names whatever else it meets. What does not depend on the
images is computed now and becomes a constant. ONNX has channels first in convolutions and poolings: every value
remembers the order in which its axes are stored, so that a transposition is written only where one is needed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

from orc_jax.errors import UserError

OPSET, IR_VERSION = 17, 8  # of 2022: what runtimes of any age read
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"}
UNARY = {"exp": "Exp", "neg": "Neg", "sqrt": "Sqrt", "logistic": "Sigmoid", "tanh": "Tanh", "erf": "Erf"}
CHANNELS_FIRST = (0, 3, 1, 2)


class Tensor(NamedTuple):
    """A value that depends on the images; axis `i` of the stored tensor is axis `axes[i]` of the value in JAX."""

    name: str
    axes: tuple[int, ...]


Value = Tensor | np.ndarray


class Graph:
    """The nodes and constants of an ONNX graph that is being written."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        """Adds a constant; returns its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes) -> list[str]:
        """Adds a node; returns the names of its outputs."""
        names = [f"v{len(self.nodes)}" if outputs == 1 else f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def stored(self, value: Value, axes: Sequence[int]) -> str:
        """The name of `value`, stored with its axes in the order `axes`."""
        axes = tuple(axes)
        if isinstance(value, np.ndarray):
            return self.constant(value.transpose(axes) if value.ndim else value)
        if value.axes == axes:
            return value.name
        return self.node("Transpose", value.name, perm=[value.axes.index(axis) for axis in axes])[0]


def _same_axes(values: Sequence[Value]) -> tuple[int, ...]:
    """The order in which most is stored already: that of the first value that is no constant."""
    return next(value.axes for value in values if isinstance(value, Tensor))


def _binary(graph: Graph, eqn: core.JaxprEqn, x: Value, y: Value) -> list[Value]:
    axes, name = _same_axes((x, y)), eqn.primitive.name
    zero = next((v for v in (x, y) if isinstance(v, np.ndarray) and not v.ndim and v == 0), None)
    if name == "max" and zero is not None:  # runtimes fuse it with the convolution before it
        return [Tensor(graph.node("Relu", graph.stored(y if zero is x else x, axes))[0], axes)]
    return [Tensor(graph.node(BINARY[name], graph.stored(x, axes), graph.stored(y, axes))[0], axes)]


def _cast(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    return [Tensor(graph.node("Cast", x.name, to=dtype)[0], x.axes)]


def _convolution(graph: Graph, eqn: core.JaxprEqn, images: Value, kernel: Value) -> list[Value]:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    _require(eqn, set(params["lhs_dilation"]) == {1} and params["batch_group_count"] == 1)
    name = graph.node(
        "Conv",
        graph.stored(images, numbers.lhs_spec),
        graph.stored(kernel, numbers.rhs_spec),
        strides=params["window_strides"],
        pads=_pads(params["padding"]),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )[0]
    return [Tensor(name, tuple(numbers.out_spec))]


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [low for low, _ in padding] + [high for _, high in padding]


def _window(graph: Graph, eqn: core.JaxprEqn, images: Tensor) -> list[Value]:
    """Maximum or sum over windows; a sum is the mean, in which the padding counts, times the size of the window."""
    params = eqn.params
    window, strides, padding = ([params[key][axis] for axis in CHANNELS_FIRST] for key in _WINDOW)
    plain = {*params["base_dilation"], *params["window_dilation"], *window[:2], *strides[:2]} == {1}
    _require(eqn, plain and not np.any(padding[:2]))
    options = {"kernel_shape": window[2:], "strides": strides[2:], "pads": _pads(padding[2:])}
    source = graph.stored(images, CHANNELS_FIRST)
    if eqn.primitive.name == "reduce_window_max":
        return [Tensor(graph.node("MaxPool", source, **options)[0], CHANNELS_FIRST)]
    (mean,) = graph.node("AveragePool", source, count_include_pad=1, **options)
    size = graph.constant(np.asarray(math.prod(window), np.float32))
    return [Tensor(graph.node("Mul", mean, size)[0], CHANNELS_FIRST)]


_WINDOW = ("window_dimensions", "window_strides", "padding")


def _sum(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    reduced = eqn.params["axes"]
    kept = [axis for axis in x.axes if axis not in reduced]
    where = graph.constant(np.array([x.axes.index(axis) for axis in reduced], np.int64))
    (name,) = graph.node("ReduceSum", x.name, where, keepdims=0)
    return [Tensor(name, tuple(sorted(kept).index(axis) for axis in kept))]


def _reshape(graph: Graph, eqn: Any, x: Tensor) -> list[Value]:
    shape = [size if isinstance(size, int) else -1 for size in eqn.outvars[0].aval.shape]
    plain = eqn.primitive.name == "squeeze" or eqn.params["dimensions"] is None
    _require(eqn, plain and shape.count(-1) == 1)
    source = graph.stored(x, range(len(x.axes)))
    (name,) = graph.node("Reshape", source, graph.constant(np.array(shape, np.int64)))
    return [Tensor(name, tuple(range(len(shape))))]


def _transpose(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    return [Tensor(x.name, tuple(eqn.params["permutation"].index(axis) for axis in x.axes))]


def _matrix_product(graph: Graph, eqn: core.JaxprEqn, x: Value, y: Value) -> list[Value]:
    of_both, batch = dimensions = eqn.params["dimension_numbers"]
    if isinstance(y, np.ndarray) and y.ndim == 2 and len(of_both[0]) == 1 and not any(batch):
        ((of_x,), (of_y,)) = of_both
        order = [axis for axis in range(_rank(x)) if axis != of_x]
        name = graph.node("MatMul", graph.stored(x, [*order, of_x]), graph.stored(y, (of_y, 1 - of_y)))[0]
        return [Tensor(name, tuple(range(len(order) + 1)))]
    return _einsum(graph, dimensions, x, y)


def _einsum(graph: Graph, dimensions: Any, x: Value, y: Value) -> list[Value]:
    """Any other product: batch axes, then the other axes of both, as JAX has it."""
    (of_x, of_y), (batch_x, batch_y) = dimensions
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names_x = {axis: next(letters) for axis in range(_rank(x))}
    shared = dict(zip((*of_y, *batch_y), (*of_x, *batch_x), strict=True))
    names_y = {axis: names_x[shared[axis]] if axis in shared else next(letters) for axis in range(_rank(y))}
    result = [names_x[axis] for axis in batch_x]
    result += [name for axis, name in names_x.items() if axis not in (*of_x, *batch_x)]
    result += [name for axis, name in names_y.items() if axis not in shared]
    terms, inputs = [], []
    for operand, names in ((x, names_x), (y, names_y)):
        axes = operand.axes if isinstance(operand, Tensor) else tuple(range(operand.ndim))
        terms.append("".join(names[axis] for axis in axes))
        inputs.append(graph.stored(operand, axes))
    (name,) = graph.node("Einsum", *inputs, equation=f"{','.join(terms)}->{''.join(result)}")
    return [Tensor(name, tuple(range(len(result))))]


def _rank(value: Value) -> int:
    return len(value.axes) if isinstance(value, Tensor) else value.ndim


def _unary(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    return [Tensor(graph.node(UNARY[eqn.primitive.name], x.name)[0], x.axes)]


def _same(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    return [x]


def _square(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    return [Tensor(graph.node("Mul", x.name, x.name)[0], x.axes)]


def _rsqrt(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    return [Tensor(graph.node("Reciprocal", graph.node("Sqrt", x.name)[0])[0], x.axes)]


def _erfc(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    one = graph.constant(np.asarray(1, np.float32))
    return [Tensor(graph.node("Sub", one, graph.node("Erf", x.name)[0])[0], x.axes)]


def _max(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    reduced = [int(axis) for axis in eqn.params["axes"]]
    kept = [axis for axis in x.axes if axis not in reduced]
    (name,) = graph.node("ReduceMax", x.name, axes=[x.axes.index(axis) for axis in reduced], keepdims=0)
    return [Tensor(name, tuple(sorted(kept).index(axis) for axis in kept))]


def _broadcast(graph: Graph, eqn: Any, x: Tensor) -> list[Value]:
    """New axes of size 1, and axes of size 1 that become larger."""
    shape, where = eqn.outvars[0].aval.shape, [int(axis) for axis in eqn.params["broadcast_dimensions"]]
    before = dict(zip(where, eqn.invars[0].aval.shape, strict=True))
    new = [axis for axis in range(len(shape)) if axis not in where]
    name = graph.stored(x, range(len(x.axes)))
    if new:
        (name,) = graph.node("Unsqueeze", name, graph.constant(np.array(new, np.int64)))
    if any(before.get(axis, 1) != size for axis, size in enumerate(shape)):
        grown = [1 if before.get(axis, 1) == size else size for axis, size in enumerate(shape)]
        _require(eqn, all(isinstance(size, int) for size in grown))
        (name,) = graph.node("Expand", name, graph.constant(np.array(grown, np.int64)))
    return [Tensor(name, tuple(range(len(shape))))]


def _slice(graph: Graph, eqn: Any, x: Tensor) -> list[Value]:
    params, sizes = eqn.params, eqn.invars[0].aval.shape
    strides = params["strides"] or (1,) * len(sizes)
    ranges = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    cut = {axis: of for axis, of in enumerate(ranges) if of != (0, sizes[axis], 1)}
    columns = [*zip(*cut.values(), strict=True)] or [(), (), ()]
    starts, ends, steps = (graph.constant(np.array(column, np.int64)) for column in columns)
    where = graph.constant(np.array([x.axes.index(axis) for axis in cut], np.int64))
    return [Tensor(graph.node("Slice", x.name, starts, ends, where, steps)[0], x.axes)]


def _pad(graph: Graph, eqn: core.JaxprEqn, x: Tensor, value: Value) -> list[Value]:
    config = [eqn.params["padding_config"][axis] for axis in x.axes]
    _require(eqn, isinstance(value, np.ndarray) and all(low >= 0 <= high and not inner for low, high, inner in config))
    pads = [int(low) for low, _, _ in config] + [int(high) for _, high, _ in config]
    (name,) = graph.node("Pad", x.name, graph.constant(np.array(pads, np.int64)), graph.stored(value, ()))
    return [Tensor(name, x.axes)]


def _concatenate(graph: Graph, eqn: core.JaxprEqn, *values: Value) -> list[Value]:
    axes = _same_axes(values)
    where = axes.index(eqn.params["dimension"])
    return [Tensor(graph.node("Concat", *(graph.stored(value, axes) for value in values), axis=where)[0], axes)]


def _split(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> list[Value]:
    sizes = graph.constant(np.array(eqn.params["sizes"], np.int64))
    where = x.axes.index(eqn.params["axis"])
    names = graph.node("Split", x.name, sizes, outputs=len(eqn.outvars), axis=where)
    return [Tensor(name, x.axes) for name in names]


RULES: dict[str, Callable[..., list[Value]]] = {
    **dict.fromkeys(BINARY, _binary),
    "convert_element_type": _cast,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _window,
    "reduce_window_sum": _window,
    "reduce_sum": _sum,
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reduce_max": _max,
    "slice": _slice,
    "pad": _pad,
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(("copy", "copy_p", "stop_gradient"), _same),
    "square": _square,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "dot_general": _matrix_product,
    "concatenate": _concatenate,
    "split": _split,
}


def _require(eqn: core.JaxprEqn, fine: bool) -> None:
    if not fine:
        raise UserError(f"--format=onnx: this network has an operation that is not translated: {eqn.primitive.name}")


def _write(graph: Graph, closed: core.ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Writes the operations of `closed` on `inputs`, calls inlined; returns its outputs."""
    values = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    values |= zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True)

    def value(atom: Any) -> Value:
        literal = isinstance(atom, core.Literal)
        return np.asarray(atom.val, getattr(atom.aval, "dtype", None)) if literal else values[atom]

    for eqn in closed.jaxpr.eqns:
        operands = [value(atom) for atom in eqn.invars]
        called = [eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params]
        if called:
            results = _write(graph, called[0], operands)
        elif not any(isinstance(operand, Tensor) for operand in operands):
            results = eqn.primitive.bind(*operands, **eqn.params)
            results = [np.asarray(x) for x in (results if eqn.primitive.multiple_results else [results])]
        else:
            _require(eqn, eqn.primitive.name in RULES)
            results = RULES[eqn.primitive.name](graph, eqn, *operands)
        values |= zip(eqn.outvars, results, strict=True)
    return [value(atom) for atom in closed.jaxpr.outvars]


def to_onnx(function: Callable, image_shape: tuple[int, int, int], metadata: dict[str, str]) -> bytes:
    """The serialised model of a function from uint8 images `[batch, *image_shape]` to logits `[batch, classes]`.

    Raises:
        UserError: if the function has an operation that is not translated.
    """
    (batch,) = jax.export.symbolic_shape(BATCH)
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *image_shape), np.uint8))
    graph = Graph()
    (logits,) = _write(graph, closed, [Tensor(INPUT, tuple(range(4)))])
    graph.nodes.append(helper.make_node("Identity", [graph.stored(logits, (0, 1))], [OUTPUT]))
    classes = closed.out_avals[0].shape[1]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            metadata["architecture"],
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [BATCH, *image_shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="orc_jax",
    )
    helper.set_model_props(model, metadata)
    return model.SerializeToString()
