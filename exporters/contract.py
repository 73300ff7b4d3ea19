"""The fusion contract: every attention that a model computes is one fused node, or is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from toolkit.errors import StageError

__all__ = ["Fusion", "arguments_of", "check_contract", "check_deterministic", "find_attention"]

_FUSED = ("toolkit.fused_attention.", "toolkit.cached_attention.", "aten.scaled_dot_product_attention.")
_SOFTMAX = ("aten.softmax.", "aten._softmax.", "aten._safe_softmax.", "aten.special_softmax.")
_MATMUL = ("aten.matmul.", "aten.bmm.", "aten.baddbmm.", "aten.einsum.")
_BARRIER = ("aten.linear.", "aten.layer_norm.", "aten.embedding.", "aten.conv", "aten.group_norm.")


@dataclass(frozen=True, slots=True)
class Fusion:
    """Paths of the modules whose attention became a fused node, and of those whose attention did not."""

    fused: tuple[str, ...]
    missed: tuple[str, ...]


def find_attention(program: ExportedProgram) -> Fusion:
    """Find attention by what is computed, not by class names, which change with every release.

    Fused is the toolkit's operator or torch's `scaled_dot_product_attention`, which export to the same node.
    Missed is a softmax between two matrix products (with no Linear, norm or embedding between them),
    or another library's attention kernel.
    """
    fused: list[str] = []
    missed: list[str] = []
    for node in _calls(program.graph.nodes):
        name = str(node.target)
        if name.startswith(_FUSED):
            fused.append(_module_path(node))
        elif "attention" in name or (name.startswith(_SOFTMAX) and _is_between_products(node)):
            missed.append(_module_path(node))
    return Fusion(tuple(fused), tuple(dict.fromkeys(missed)))


def check_contract(fusion: Fusion, *, allow_unfused: bool, expect_attention: bool) -> None:
    """Raise StageError where attention was missed, or where a transformer shows none at all."""
    if allow_unfused:
        return
    if fusion.missed:
        raise StageError(
            "export",
            f"{len(fusion.missed)} of {len(fusion.missed) + len(fusion.fused)} attention modules are not fused: "
            + ", ".join(fusion.missed),
            hint="These modules compute attention by hand instead of through Transformers' attention interface or "
            "scaled_dot_product_attention. Give the family a module swap, or pass --allow-unfused "
            "(slower; recorded in the manifest).",
        )
    if expect_attention and not fusion.fused:
        raise StageError(
            "export",
            "the model computes no attention at all",
            hint="Is it a transformer? Pass --allow-unfused to export it as it is.",
        )


def check_deterministic(program: ExportedProgram) -> None:
    """Raise StageError where the captured model draws random numbers: no run of it would equal another.

    That an operator may draw is its tag in PyTorch. Dropout that is off draws none; that of attention is refused where
    attention is translated.
    """
    drawing = [node for node in _calls(program.graph.nodes) if _draws(node)]
    if drawing:
        where = dict.fromkeys(f"{_module_path(node)} ({str(node.target).split('.')[1]})" for node in drawing)
        raise StageError(
            "export",
            f"the model draws random numbers when it is run: {', '.join(where)}",
            hint="Models for pre-training mask their input at random: export the encoder of the checkpoint with "
            "--task features. In a module of your own, make the random tensor an input, or leave it out in eval mode.",
        )


def arguments_of(node: Node, operator: torch._ops.OpOverload[Any, Any]) -> dict[str, Any]:
    """What a call of `operator` is given, by the names of its schema; defaults are left out."""
    names = (argument.name for argument in operator._schema.arguments)
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _draws(node: Node) -> bool:
    operator = node.target
    if not isinstance(operator, torch._ops.OpOverload) or not node.users or str(operator).startswith(_FUSED):
        return False
    given = arguments_of(node, operator)
    off = given.get("train", given.get("training", True)) is False
    return torch.Tag.nondeterministic_seeded in operator.tags and not off


def _calls(nodes: Iterable[Node]) -> Iterable[Node]:
    return (node for node in nodes if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload))


def _module_path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return path.removeprefix("module.").removeprefix("model.") or "(the model itself)"


def _is_between_products(softmax: Node) -> bool:
    return _reaches_product(softmax, lambda node: node.all_input_nodes) and _reaches_product(
        softmax, lambda node: list(node.users)
    )


def _reaches_product(start: Node, step: Callable[[Node], list[Node]]) -> bool:
    seen: set[Node] = set()
    open_nodes = step(start)
    while open_nodes:
        node = open_nodes.pop()
        name = str(node.target)
        if node in seen or node.op != "call_function" or name.startswith(_BARRIER):
            continue
        if name.startswith(_MATMUL):
            return True
        seen.add(node)
        open_nodes.extend(step(node))
    return False
