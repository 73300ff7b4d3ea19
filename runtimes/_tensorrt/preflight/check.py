"""All rules over a whole model: objections with the node and the module they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import onnx_ir as ir

from exporters.canonical import module_path
from runtimes._tensorrt.preflight.attention import attention
from runtimes._tensorrt.preflight.dtypes import architecture_findings, dtype_findings, uint8
from runtimes._tensorrt.preflight.finding import Finding
from runtimes._tensorrt.preflight.functions import calls
from runtimes._tensorrt.preflight.operators import operators, opset
from runtimes._tensorrt.preflight.quantization import quantization
from runtimes._tensorrt.preflight.speed import attention_between_q_and_dq, weights
from toolkit.errors import UnsupportedError
from toolkit.types import Step

__all__ = ["Objection", "check", "objections"]

_SHOWN = 5
_RULES: tuple[Callable[[ir.Node], Iterator[Finding]], ...] = (
    operators,
    attention,
    quantization,
    uint8,
    weights,
    attention_between_q_and_dq,
)


@dataclass(frozen=True, slots=True)
class Objection:
    """One thing about one node or tensor.

    `where` names it, `module` is the path of the PyTorch module it came from, where the graph says. `fix` is the
    rewrite that helps. A fatal one is refused or would compute something else; the others only cost speed.
    """

    where: str
    module: str
    problem: str
    fix: str
    fatal: bool

    def __str__(self) -> str:
        module = f" of {self.module}" if self.module else ""
        return f"{self.where}{module}: {self.problem} → {self.fix}"


def check(model: ir.Model, architectures: Sequence[str] = ()) -> list[Step]:
    """One step for each kind of objection that is not fatal, with the number of nodes and the fix.

    Raises UnsupportedError that names the nodes, their modules, what is wrong with each and what fixes it.
    """
    found = list(objections(model, architectures))
    fatal = [str(objection) for objection in found if objection.fatal]
    if fatal:
        more = f"; and {len(fatal) - _SHOWN} more" if len(fatal) > _SHOWN else ""
        raise UnsupportedError(
            f"TensorRT cannot take this graph: {'; '.join(fatal[:_SHOWN])}{more}",
            hint="The scheme or the model decides these nodes: try another scheme, or the target ort-cpu.",
        )
    kinds = Counter((objection.problem, objection.fix) for objection in found)
    return [Step("lower", problem, count, fix) for (problem, fix), count in kinds.items()]


def objections(model: ir.Model, architectures: Sequence[str] = ()) -> Iterator[Objection]:
    """Each thing that does not parse, would parse to something else, or is slow, in graph order.

    `architectures` are what is compiled for, as `sm89`; none leaves out what depends on them.
    """
    for finding in opset(model):
        yield Objection("the model", "", *finding)
    for where, finding in chain(dtype_findings(model), architecture_findings(model, architectures)):
        yield Objection(where, "", *finding)
    for graph in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            yield from _about(node, model)


def _about(node: ir.Node, model: ir.Model) -> Iterator[Objection]:
    function = model.functions.get(node.op_identifier())
    found = calls(node, function) if function is not None else chain.from_iterable(rule(node) for rule in _RULES)
    for finding in found:
        yield Objection(_named(node), module_path(node), *finding)


def _named(node: ir.Node) -> str:
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"{kind} '{node.name}'"
