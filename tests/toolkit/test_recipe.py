"""What the user may change of a scheme's recipe, and what is said where nothing would change."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.recipe.changes import parse_changes, require_taken, tuned
from toolkit.recipe.layers import check_layers, recipe_of_target
from toolkit.recipe.own import own_recipe
from toolkit.recipe.runtimes import check_runtimes
from toolkit.target import parse_target
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


def test_weights_by_channel_are_rounded_to_the_nearest_or_by_gptq() -> None:
    own = recipe("int8", ENCODER)
    assert own.rounding == "gptq"
    assert tuned(parse_changes("rounding=nearest,smoothing=0.5"), own) == replace(
        own, rounding="nearest", smoothing=0.5
    )
    awq = parse_changes("rounding=awq")
    assert tuned(awq, own) == own
    with pytest.raises(UsageError, match="scheme 'int8' has no 'rounding'"):
        require_taken(awq, [{"int8": own}])
    require_taken(awq, [{"int8": own, "int4": recipe("int4", ENCODER)}])


@pytest.mark.parametrize(
    ("text", "scheme", "message"),
    [
        ("blocksize=64", "int4", "'blocksize=64' is no part of a recipe"),
        ("block-size", "int4", "'block-size' is no part"),
        ("block-size=48", "int4", "'48' is no block-size"),
        ("rounding=awq,rounding=hqq", "int4", "'rounding' is given twice"),
        ("symmetric=maybe", "int4", "'maybe' is no symmetric"),
        ("exclude=;", "int4", "exclude names no module"),
        ("layers=*.fc1", "int4", r"'\*\.fc1' gives no precision"),
        ("layers=*.fc1:int2", "int4", r"'int2' is no precision for '\*\.fc1'"),
        ("layers=;", "int4", "layers names no module"),
        ("smoothing=0.5", "int8", "scheme 'int8' has no 'smoothing' for this model"),
        ("rounding=gptq", "int8", "scheme 'int8' has no 'rounding' for this model"),
        ("embeddings=int4", "int8", "'int4' is no embeddings"),
        ("embeddings=int8", "int8", "scheme 'int8' has no 'embeddings' for this model"),
        ("embeddings=int8", "int4", "scheme 'int4' has no 'embeddings' for this model"),
        ("calibration=kl", "int8", "'kl' is no calibration"),
        ("calibration=mse", "fp8", "'mse' calibration is made for steps of one size"),
        ("calibration=entropy", "nvfp4", "scheme 'nvfp4' has no 'calibration' for this model"),
        ("exclude=*", "fp16", "scheme 'fp16' has no 'exclude' for this model"),
    ],
)
def test_what_would_change_nothing_is_refused(text: str, scheme: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        require_taken(parse_changes(text), [{scheme: recipe(scheme)}])


def test_a_method_that_one_of_two_schemes_has_no_use_for_is_taken_by_the_other() -> None:
    changes = parse_changes("calibration=entropy")
    require_taken(changes, [{scheme: recipe(scheme, ENCODER)} for scheme in ("int8", "fp8")])
    taken = {scheme: tuned(changes, recipe(scheme, ENCODER)).calibration for scheme in ("int8", "fp8")}
    assert taken == {"int8": "entropy", "fp8": "minmax"}


def test_layers_are_read_in_order() -> None:
    changes = parse_changes("layers= *.query:int4 ; *.fc2 :fp32,block-size=64")
    assert list(changes.layers.items()) == [("*.query", "int4"), ("*.fc2", "fp32")]
    made = recipe_of_target(changes, parse_target("ort-cpu-int8"), ENCODER)
    assert made.layers == (("*.query", "int4"), ("*.fc2", "fp32"))
    assert (made.others["int4"].block_size, made.others["int4"].layers) == (
        64,
        (("*.query", "int4"), ("*.fc2", "fp32")),
    )
    assert recipe_of_target(changes, parse_target("ort-cpu-fp32"), ENCODER) == recipe("fp32", ENCODER)


@pytest.mark.parametrize(
    ("target", "precision", "message", "hint"),
    [
        ("ort-cpu-fp32", "int8", "ort-cpu-fp32 cannot give single layers a precision", "Choose .* ort-cpu-int8"),
        ("trt-fp16", "int8", "layers of trt-fp16 cannot be int8", "They can be: fp32, fp16"),
        ("trt-bf16", "fp16", "layers of trt-bf16 cannot be fp16", "They can be: fp32"),
        ("trt-fp8", "int4", "layers of trt-fp8 cannot be int4", "They can be: fp32, fp16"),
        ("ort-trt-int8", "int4", "'ort-trt' does not take int4", "can be: fp32, fp16, int8"),
    ],
)
def test_what_cannot_be_mixed_is_refused_with_what_can(target: str, precision: str, message: str, hint: str) -> None:
    with pytest.raises((UsageError, UnsupportedError), match=message) as caught:
        check_layers(parse_changes(f"layers=*.fc1:{precision}"), [parse_target(target)], ENCODER)
    assert re.search(hint, caught.value.hint)


def test_a_target_that_mixes_nothing_may_stand_beside_one_that_does() -> None:
    targets = [parse_target("ort-cpu-fp32"), parse_target("ort-cpu-int8")]
    check_layers(parse_changes("layers=*.fc1:int4"), targets, ENCODER)


def test_embeddings_are_for_runtimes_that_look_rows_up_in_integers() -> None:
    changes = parse_changes("embeddings=int8")
    for scheme in ("int8", "int8-dynamic", "int4"):
        require_taken(changes, [{scheme: recipe(scheme, ENCODER)}])
        assert tuned(changes, recipe(scheme, ENCODER)).embeddings == "int8"
    check_runtimes(dict.fromkeys([parse_target("ort-cpu-int8"), parse_target("openvino-int8")], changes))
    with pytest.raises(UnsupportedError, match="'trt' does not look rows up in embedding tables of int8") as caught:
        check_runtimes({parse_target("ort-cpu-int8"): changes, parse_target("trt-int8"): changes})
    assert "ort-cpu" in caught.value.hint
    check_runtimes({parse_target("trt-int8"): parse_changes("embeddings=float")})


def test_ranges_of_tokens_are_for_unsigned_activations_and_the_runtime_that_measures_them() -> None:
    changes = parse_changes("ranges=per-token")
    unsigned = own_recipe(parse_target("ort-cpu-int8"), ENCODER)
    require_taken(changes, [{"int8": unsigned}])
    assert tuned(changes, unsigned) == replace(unsigned, ranges="per-token")
    for scheme, target in (("int8", "trt-int8"), ("int8-dynamic", "ort-cpu-int8-dynamic"), ("fp32", "ort-cpu-fp32")):
        with pytest.raises(UsageError, match=f"'{scheme}' has no 'ranges' for this model") as refused:
            require_taken(changes, [{scheme: own_recipe(parse_target(target), ENCODER)}])
        assert "ranges=per-token is taken by: ort-cpu. Leave it out here." in refused.value.hint
    check_runtimes({parse_target("ort-cpu-int8"): changes})
    with pytest.raises(
        UnsupportedError, match="'openvino' does not measure the range of each token's vector"
    ) as caught:
        check_runtimes({parse_target("openvino-int8"): changes})
    assert (
        "Export for openvino-int8 without ranges=per-token. ranges=per-token is taken by: ort-cpu." in caught.value.hint
    )
    with pytest.raises(UsageError, match="'per-row' is no ranges"):
        parse_changes("ranges=per-row")


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


def test_palettized_weights_can_be_excluded_but_not_blocked() -> None:
    require_taken(parse_changes("exclude=*.head,layers=*.fc1:fp16"), [{"palettized": recipe("palettized")}])
    with pytest.raises(UsageError, match="has no 'block-size'"):
        require_taken(parse_changes("block-size=32"), [{"palettized": recipe("palettized")}])
