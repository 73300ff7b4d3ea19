"""The preflight names what TensorRT refuses, misreads or makes slow, and the builder does to the very same graphs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from trt_traps import GOOD, TRAPS, attention, builds, graph
from trt_trial import Trial, attempt

from runtimes._tensorrt.preflight import check, objections
from runtimes._tensorrt.preflight.operators import FOREIGN, UNSUPPORTED
from toolkit.errors import UnsupportedError

NO_RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (pip install 'tensorrt-rtx-cu13>=1.7')",
)
KNOWN = """
import sys, onnx.defs, tensorrt_rtx as trt
log = trt.Logger(trt.Logger.ERROR)
parser = trt.OnnxParser(trt.Builder(log).create_network(0), log)
print(*sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain and not parser.supports_operator(s.name)}))
print(*(name for name in sys.argv[1:] if parser.supports_operator(name)))
"""


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    graphs = {**GOOD, **{name: trap.model for name, trap in TRAPS.items()}}
    safe = {name: re.sub(r"[^\w@ -]", "_", name) for name in graphs}
    done = attempt({safe[name]: model for name, model in graphs.items()}, tmp_path_factory.mktemp("trials"))
    return {name: done[safe[name]] for name in graphs}


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_what_parses_passes(case: str) -> None:
    quiet = [str(found) for found in objections(GOOD[case], case.split("@")[1:])]
    assert quiet == []
    assert check(GOOD[case]) == []


@pytest.mark.parametrize("case", TRAPS, ids=str)
def test_traps_are_named_with_their_fix(case: str) -> None:
    trap = TRAPS[case]
    (found,) = {(each.problem, each.fix, each.fatal) for each in objections(trap.model, trap.architectures)
                if trap.problem in each.problem}  # fmt: skip
    assert trap.fix in found[1]
    assert found[2] == trap.fatal
    if trap.fatal:
        with pytest.raises(UnsupportedError, match=re.escape(trap.problem)) as caught:
            check(trap.model, trap.architectures)
        assert caught.value.hint
    else:
        (step,) = check(trap.model)
        assert (step.stage, step.what, step.reason) == ("lower", *found[:2])
        assert step.count >= 1


@pytest.mark.requires_rtx
@NO_RTX
@pytest.mark.parametrize("case", GOOD, ids=str)
def test_what_passes_builds(case: str, trials: dict[str, Trial]) -> None:
    assert builds(trials[case]), trials[case].log


@pytest.mark.requires_rtx
@NO_RTX
@pytest.mark.parametrize("case", TRAPS, ids=str)
def test_the_builder_falls_into_each_trap(case: str, trials: dict[str, Trial]) -> None:
    assert TRAPS[case].proof(trials[case]), (trials[case].code, trials[case].log)


@pytest.mark.requires_rtx
@NO_RTX
def test_good_forms_have_the_kernels_they_were_quantized_for(trials: dict[str, Trial]) -> None:
    """What the slow traps are measured against."""
    assert trials["int8"].int8_gemms == 1
    assert trials["fp32 scale of an fp16 activation"].int8_gemms == 1
    assert [kind for kind, _ in trials["int4 in blocks"].kernels] == ["runtime_fusion"]
    assert [kind for kind, _ in trials["int8 a channel"].kernels] == ["runtime_fusion"]


@pytest.mark.requires_rtx
@NO_RTX
def test_the_list_of_unsupported_operators_is_the_parser_s_own() -> None:
    command = [sys.executable, "-c", KNOWN, *FOREIGN, "FastGelu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    missing, foreign = (set(line.split()) for line in done.stdout.strip().splitlines()[-2:])
    assert missing == UNSUPPORTED
    assert foreign == FOREIGN


def test_the_message_names_node_and_module() -> None:
    model = attention("y = Attention <softcap = 2.0> (q, k, v)")
    model.graph[0].name = "node_7"
    (said,) = objections(model)
    assert (said.where, said.module) == ("Attention 'node_7'", "encoder.layer.3")
    assert str(said) == "Attention 'node_7' of encoder.layer.3: softcap is refused → write it as MatMul and Softmax"


def test_many_objections_are_cut_short() -> None:
    lines = " ".join(f"y{i} = com.microsoft.FastGelu(x)" for i in range(8))
    outputs = ", ".join(f"float[2] y{i}" for i in range(8))
    with pytest.raises(UnsupportedError, match="and 3 more"):
        check(graph(f"(float[2] x) => ({outputs}) {{ {lines} }}"))


def test_nodes_of_subgraphs_are_seen() -> None:
    model = graph(
        "(bool c, float[2] x) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] a)"
        " { a = com.microsoft.FastGelu(x) }, else_branch = e () => (float[2] b) { b = Relu(x) }> }"
    )
    assert [found.where.split()[0] for found in objections(model)] == ["com.microsoft::FastGelu"]


def test_architectures_that_have_the_type_pass() -> None:
    model = TRAPS["fp8@sm86"].model
    assert check(model, ("sm89", "sm120")) == []


def test_the_document_has_a_row_for_every_trap_and_no_other() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "tensorrt-parser.md").read_text().splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert sorted(set(rows) - {"trap", "---"}) == sorted(TRAPS)
