"""Operators that look at a whole axis: reductions, normalisations, softmax."""

from __future__ import annotations

from collections.abc import Mapping

from runtimes.coreml.translate.mil import Var
from runtimes.coreml.translate.values import Node, Translate

__all__ = ["NORMALISATIONS"]


def _reduce(operator: str) -> Translate:
    def translate(node: Node) -> Var:
        axes, keep = node.ints(1, "axes"), bool(node.integer("keepdims", 1))
        if not axes and node.integer("noop_with_empty_axes", 0):
            return node.input(0)
        return node.emit(operator, x=node.input(0), axes=axes or None, keep_dims=keep)

    return translate


def _arg(operator: str) -> Translate:
    def translate(node: Node) -> Var:
        if node.integer("select_last_index", 0):
            raise node.refusal("it wants the last of equal numbers")
        keep = bool(node.integer("keepdims", 1))
        return node.emit(operator, x=node.input(0), axis=node.integer("axis", 0), keep_dims=keep)

    return translate


def _cumsum(node: Node) -> Var:
    axis = node.ints(1)
    if not axis:
        raise node.refusal("its axis is computed")
    flags = {name: bool(node.integer(name, 0)) for name in ("exclusive", "reverse")}
    return node.emit("cumsum", x=node.input(0), axis=axis[0], **flags)


def _softmax(node: Node) -> Var:
    return node.emit("softmax", x=node.input(0), axis=node.integer("axis", -1))


def _log_softmax(node: Node) -> Var:
    """x - log Σ exp x, with the largest taken off before so that nothing overflows."""
    x, axes = node.input(0), [node.integer("axis", -1)]
    centred = node.emit("sub", x=x, y=node.emit("reduce_max", x=x, axes=axes, keep_dims=True))
    total = node.emit("reduce_sum", x=node.emit("exp", x=centred), axes=axes, keep_dims=True)
    return node.emit("sub", x=centred, y=node.emit("log", x=total, epsilon=node.number(0.0, node.dtype)))


def _layer_norm(node: Node) -> Var:
    """Over all axes from `axis` on."""
    x = node.input(0)
    rank = len(x.shape)
    axis = node.integer("axis", -1)
    if any(node.value(index) is not None and node.array(index) is None for index in (1, 2)):
        raise node.refusal("its scale is computed")
    return node.emit(
        "layer_norm",
        x=x,
        axes=list(range((axis + rank) % rank, rank)),
        gamma=node.optional(1),
        beta=node.optional(2),
        epsilon=node.number(node.decimal("epsilon", 1e-5), node.dtype),
    )


def _rms_norm(node: Node) -> Var:
    """x · rsqrt(mean(x²) + ε) · scale, as RMSNormalization of ONNX 23 says; ML Programs have no operator for it."""
    x = node.input(0)
    rank = len(x.shape)
    axes = list(range((node.integer("axis", -1) + rank) % rank, rank))
    mean = node.emit("reduce_mean", x=node.emit("square", x=x), axes=axes, keep_dims=True)
    raised = node.emit("add", x=mean, y=node.number(node.decimal("epsilon", 1e-5), node.dtype))
    # Its own epsilon would be added once more.
    root = node.emit("rsqrt", x=raised, epsilon=node.number(0.0, node.dtype))
    return node.emit("mul", x=node.emit("mul", x=x, y=root), y=node.input(1))


NORMALISATIONS: Mapping[str, Translate] = {
    "ArgMax": _arg("reduce_argmax"),
    "ArgMin": _arg("reduce_argmin"),
    "CumSum": _cumsum,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _log_softmax,
    "RMSNormalization": _rms_norm,
    "ReduceL1": _reduce("reduce_l1_norm"),
    "ReduceL2": _reduce("reduce_l2_norm"),
    "ReduceMax": _reduce("reduce_max"),
    "ReduceMean": _reduce("reduce_mean"),
    "ReduceMin": _reduce("reduce_min"),
    "ReduceProd": _reduce("reduce_prod"),
    "ReduceSum": _reduce("reduce_sum"),
    "ReduceSumSquare": _reduce("reduce_sum_square"),
    "Softmax": _softmax,
}
