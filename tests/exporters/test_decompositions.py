"""A program is traced a second time only where that changes it, and says the same either way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from onnxscript.function_libs.torch_lib import registration
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.onnx._internal.exporter import _decomp

from exporters.decompositions import decomposed_where_needed


class Of(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.linear(x))


def _written(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y += 1
    y[:, 0] = 0
    return y


def _plain(x: torch.Tensor) -> torch.Tensor:
    rows = nn.functional.dropout(x, 0.1, training=False).reshape(x.shape[0], -1, 3).contiguous().flatten(1)
    return nn.functional.layer_norm(rows, (6,)).to(torch.float64).to(torch.float32).to(rows) + (rows > 0).to(x.dtype)


def _copied(x: torch.Tensor) -> torch.Tensor:
    copy = x.to(torch.float32, copy=True)
    copy += 1
    return x * copy


CASES = {
    "plain": (_plain, False),
    "written in place": (_written, True),
    "a composite that no table holds": (lambda x: torch.swapaxes(x, 0, 1) + 1, True),
    "one that the exporter does not know": (lambda x: torch.rsub(x, 3.0), True),
    "a copy that is written": (_copied, True),
    "a cast of nothing at the end": (lambda x: (x * 2).float(), False),
    "a size as a factor": (lambda x: x * x.shape[0], False),
    "a mean by a size": (lambda x: x.sum(0, keepdim=True) / x.shape[0], False),
    "a size as a size": (lambda x: x.reshape(x.shape[0] * 2, 3), False),
    "casts inside": (lambda x: (x > 0).to(torch.int64).to("cpu") * 3, False),
}


def _program(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[nn.Module, ExportedProgram]:
    torch.manual_seed(0)
    module = Of(function).eval()
    return module, torch.export.export(module, (torch.randn(4, 6),), dynamic_shapes=({0: Dim.DYNAMIC},))


@pytest.mark.parametrize(("function", "needed"), CASES.values(), ids=CASES)
def test_it_is_traced_again_only_where_needed(function: Callable[[torch.Tensor], torch.Tensor], needed: bool) -> None:
    module, program = _program(function)
    traced: list[bool] = []
    with decomposed_where_needed(program), torch.no_grad():
        ours = program.run_decompositions

        def watched(*given: object, **options: object) -> ExportedProgram:
            made = ours(*given, **options)
            traced.append(made is not program)
            return made

        program.__dict__["run_decompositions"] = watched
        exported = torch.onnx.export(program, (), dynamo=True, verbose=False)
    assert traced == [needed]
    assert exported is not None
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    for rows in (4, 7):
        x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = module(x).detach().numpy()
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_casts_that_change_nothing_are_gone() -> None:
    _, program = _program(lambda x: x.to(torch.float32).to("cpu").to(x) + x.to(torch.float64))
    with decomposed_where_needed(program):
        pass
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in names if name.startswith(("aten.to.", "aten._to_copy."))] == ["aten._to_copy.default"]


def test_the_exporter_is_whole_again_also_after_an_error() -> None:
    _, program = _program(_plain)
    names, table = set(registration.default_registry), _decomp.create_onnx_friendly_decomposition_table
    with pytest.raises(KeyError), decomposed_where_needed(program):
        assert program.run_decompositions() is program
        assert 0 < len(set(registration.default_registry)) < len(names)
        assert _decomp.create_onnx_friendly_decomposition_table(set()) == {}
        raise KeyError
    assert set(registration.default_registry) == names
    assert _decomp.create_onnx_friendly_decomposition_table is table
    assert program.run_decompositions({}) is not program


def test_operators_of_ones_own_are_known() -> None:
    _, program = _program(torch.special.bessel_j0)
    for own, once in (((), False), ((torch.ops.aten.special_bessel_j0.default,), True)):
        with decomposed_where_needed(program, own):
            assert (program.run_decompositions({}) is program) is once


@pytest.mark.parametrize(
    ("function", "mixed"),
    [(lambda x: x.reshape(x.shape[0] * 2, 3), False), (lambda x: x / x.shape[0], True), (lambda x: x + (x > 0), True)],
)
def test_types_are_promoted_only_where_they_may_be(
    function: Callable[[torch.Tensor], torch.Tensor], mixed: bool
) -> None:
    _, program = _program(function)
    with decomposed_where_needed(program):
        assert bool(list(program.graph_module.modules())) is mixed
    assert list(program.graph_module.modules())
