"""What the user may change of a scheme's recipe, and what is said where nothing would change."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from toolkit import plugins
from toolkit.errors import UsageError
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.recipe.changes import parse_changes, require_taken, tuned
from toolkit.types import ModelSpec, QuantConfig

ENCODER = ModelSpec("m", "bert", "encoder", "features", "s", "A", (), (), {})
DECODER = ModelSpec("m", "llama", "decoder", "text-generation", "s", "A", (), (), {})


def recipe(scheme: str, spec: ModelSpec = DECODER) -> QuantConfig:
    return plugins.scheme(scheme).recipe(spec)


def test_each_key_changes_its_part() -> None:
    text = "block-size=64, rounding=awq,symmetric=no,exclude=*.down_proj;lm_head"
    made = tuned(parse_changes(text), recipe("int4"))
    assert (made.block_size, made.rounding, made.symmetric) == (64, "awq", False)
    assert made.exclude == ("*.down_proj", "lm_head")
    assert tuned(parse_changes("smoothing=off,calibration=percentile"), recipe("int8", ENCODER)).smoothing is None
    assert tuned(parse_changes(""), recipe("int4")) == recipe("int4")


@pytest.mark.parametrize(
    ("text", "scheme", "message"),
    [
        ("blocksize=64", "int4", "'blocksize=64' is no part of a recipe"),
        ("block-size", "int4", "'block-size' is no part"),
        ("block-size=48", "int4", "'48' is no block-size"),
        ("rounding=awq,rounding=hqq", "int4", "'rounding' is given twice"),
        ("symmetric=maybe", "int4", "'maybe' is no symmetric"),
        ("exclude=;", "int4", "exclude names no module"),
        ("smoothing=0.5", "int8", "scheme 'int8' has no 'smoothing' for this model"),
        ("rounding=gptq", "int8", "scheme 'int8' has no 'rounding' for this model"),
        ("exclude=*", "fp16", "scheme 'fp16' has no 'exclude' for this model"),
    ],
)
def test_what_would_change_nothing_is_refused(text: str, scheme: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        require_taken(parse_changes(text), {scheme: recipe(scheme)})


def test_smoothing_is_a_share(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'2' is no smoothing"):
        parse_changes("smoothing=2")


def test_the_line_quantizes_as_the_recipe_says(tmp_path: Path) -> None:
    text = "block-size=64,rounding=nearest,symmetric=no"
    request = Request(model="vit-digits", targets=("ort-cpu-int4",), output=tmp_path, recipe=parse_changes(text))
    (folder,) = export(plan(request))
    model = ir.load(folder / "model.onnx")
    products = [node for node in model.graph.all_nodes() if node.attributes.get_int("bits", 0) == 4]
    assert products
    # Where 64 does not divide the inputs, the largest size that does.
    sizes = {node.attributes.get_int("K", 0): node.attributes.get_int("block_size", 0) for node in products}
    assert sizes == {width: 64 if width % 64 == 0 else 32 for width in sizes}
    assert 64 in sizes.values()
