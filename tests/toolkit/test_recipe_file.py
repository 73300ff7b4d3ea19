"""Recipe files: one config with the command's flags, errors that name the line, and bundles that are made again."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.bundle.read import open_bundle, verify_hashes
from toolkit.cli import main
from toolkit.errors import DriftError, ToolkitError, UsageError
from toolkit.hashing import graph_sha256
from toolkit.pipeline import export
from toolkit.plan import plan
from toolkit.recipe.command import located, plan_of
from toolkit.recipe.document import Build, Data, Quantization, Recipe
from toolkit.recipe.file import dump_recipe, read_recipe, write_recipe
from toolkit.recipe.request import recipe_for, recipe_of, request_of
from toolkit.types import Dim

ROOT = Path(__file__).parents[2]
GOOD = "model: vit-digits\ntargets: [ort-cpu-int8]\n"

words = st.text("abcxyz019.*-_/: #'\"[]{}&!%@äé", min_size=1, max_size=12).filter(lambda text: text.strip())
names = st.text("abcxyz_", min_size=1, max_size=8)
sizes = st.lists(st.integers(1, 4096), min_size=3, max_size=3).map(sorted).map(lambda each: Dim(*each))
data = st.builds(
    Data,
    source=st.just("") | words,
    column=st.just("") | words,
    count=st.none() | st.integers(1, 999),
    seed=st.integers(0, 99),
)
quantizations = st.builds(
    Quantization,
    exclude=st.lists(words, max_size=3).map(tuple),
    layers=st.dictionaries(words, st.sampled_from(["fp32", "fp16", "int8", "int4"]), max_size=4),
    calibration=st.sampled_from([None, "minmax", "percentile", "entropy", "mse"]),
    smoothing=st.none() | st.sampled_from(("search", "off")) | st.floats(0, 1),
    attention=st.sampled_from([None, "float", "int8"]),
    embeddings=st.sampled_from([None, "float", "int8"]),
    block_size=st.sampled_from([None, 16, 128]),
    rounding=st.sampled_from([None, "awq"]),
    symmetric=st.sampled_from([None, True, False]),
)
builds = st.builds(
    Build,
    arch=st.lists(st.sampled_from(["sm80", "sm120"]), unique=True).map(tuple),
    # The hour that a build may take anyway is not written.
    timeout=st.none() | st.floats(1, 3599),
    memory=st.none() | st.integers(1, 1 << 20),
    kv_cache=st.sampled_from([None, "static"]),
    provider_option=st.dictionaries(names, words, max_size=2),
    require_engine=st.booleans(),
)
gates = st.dictionaries(st.sampled_from(["sqnr", "cosine", "kl"]), st.just("off") | st.floats(0, 1e9), max_size=3)
recipes = st.builds(
    Recipe,
    model=words,
    task=st.just("") | words,
    revision=st.none() | words,
    weights=st.sampled_from(["pretrained", "random"]),
    seed=st.integers(0, 2**32 - 1),
    targets=st.lists(words, min_size=1, max_size=2).map(tuple),
    dims=st.dictionaries(names, sizes, max_size=3),
    opset=st.none() | st.integers(18, 24),
    calibration=data,
    evaluation=st.none() | data,
    quantization=quantizations,
    gate=gates,
    build=builds,
    last_logits=st.booleans(),
    allow_unfused=st.booleans(),
)


def toolkit(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    return caught.value


@given(recipe=recipes)
@settings(max_examples=60, deadline=None)
def test_a_file_says_what_was_written(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    write_recipe(recipe, path, "Two lines\nof comment.")
    assert read_recipe(path) == recipe
    assert list(read_recipe(path).quantization.layers) == list(recipe.quantization.layers)


@given(recipe=recipes)
@settings(max_examples=60, deadline=None)
def test_a_request_is_the_same_config(recipe: Recipe) -> None:
    request = request_of(recipe)
    assert recipe_of(request) == recipe
    assert request_of(recipe_of(request)) == request


FLAGS = [
    "--model vit-digits --target ort-cpu-int8",
    "--model vit-digits --target trt-int8 --target trt-rtx-fp16 --arch sm89,sm80 --build-timeout 60 --build-memory 512 "
    "--dim batch=1:4:16 --opset 23 --weights random --seed 7",
    "--model vit-digits --target ort-cpu-int8 --calibration 16 --drift-gate sqnr=12,cosine=off --allow-unfused "
    "--recipe layers=*.fc2:fp32;*.q_proj:int4 --recipe block-size=16,exclude=*.fc1;*.o_proj,smoothing=off",
    "--model vit-digits --target ort-trt-int8 --provider-option device_id=0 "
    "--provider-option trt_engine_cache_enable=1 --recipe attention=int8",
]


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_written_and_read_are_the_same_request(flags: str, tmp_path: Path, monkeypatch: Any) -> None:
    seen = []

    def watched(recipes: Any, fields: Any) -> Any:
        seen.append(plan_of(recipes, fields))
        return seen[-1]

    monkeypatch.setattr("toolkit.recipe.command.plan_of", watched)
    file = tmp_path / "made" / "recipe.yaml"
    file.parent.mkdir()
    made = toolkit("export", *shlex.split(flags), "--write-recipe", file)
    assert made.exit_code == 0, made.output
    again = toolkit("export", "--recipe", file, "--dry-run")
    assert again.exit_code == 0, again.output
    first, second = (replace(each.request, command="") for each in seen)
    assert first == second
    assert seen[0].targets == seen[1].targets
    assert [seen[0].recipe(target) for target in seen[0].targets] == [seen[1].recipe(each) for each in seen[1].targets]


def test_the_recipe_is_shown_on_standard_output() -> None:
    shown = toolkit("export", *shlex.split(FLAGS[0]), "--write-recipe", "-")
    assert shown.stdout == "version: 1\nmodel: vit-digits\ntargets:\n- ort-cpu-int8\n"
    answer = json.loads(toolkit("export", *shlex.split(FLAGS[0]), "--write-recipe", "-", "--json").stdout)
    assert answer["recipe"]["targets"] == ["ort-cpu-int8"]


def test_a_recipe_that_cannot_work_is_not_written(tmp_path: Path) -> None:
    result = toolkit(
        "export", "--model", "vit-digits", "--target", "ort-cpu-int9", "--write-recipe", tmp_path / "r.yaml"
    )
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_flags_and_changes_in_line_go_over_the_file(tmp_path: Path) -> None:
    text = (
        "model: vit-digits\ntargets: [ort-cpu-fp32]\nseed: 3\ncalibration: {count: 8}\ngate: {sqnr: 20, cosine: 0.9}\n"
        "dims: {batch: 1:2:4}\nquantization: {layers: {'*.fc1': fp32, '*.fc2': int4}, block-size: 64}\n"
    )
    flags = {
        "targets": ("ort-cpu-int8",),
        "drift_gate": "cosine=0.95",
        "dims": {"batch": Dim(2, 2, 2)},
        "calibration": {"seed": 4},
        "evaluation": {"seed": 4},
        "options": {"provider": {}},
    }
    inline = ["layers=*.fc1:fp16;*.q_proj:int8", "block-size=32"]
    request = plan_of([str(written(tmp_path, text)), *inline], flags).request
    assert (request.seed, request.calibration, request.targets) == (3, Data(count=8, seed=4), ("ort-cpu-int8",))
    # A seed alone makes no evaluation set of the user's, and a count alone is a mistake.
    assert request.evaluation is None
    with pytest.raises(UsageError, match="evaluation samples goes with a set of your own"):
        plan_of([str(written(tmp_path, text)), *inline], flags | {"evaluation": {"count": 9}})
    assert request.drift_gate == "sqnr=20,cosine=0.95"
    assert request.dims == {"batch": Dim(2, 2, 2)}
    assert list(request.recipe.layers.items()) == [("*.fc1", "fp16"), ("*.q_proj", "int8"), ("*.fc2", "int4")]
    assert request.recipe.block_size == 32


def test_a_default_that_nobody_typed_does_not_override_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "weights: random\nseed: 5\nallow-unfused: true\nopset: 24\n")
    shown = toolkit("export", "--recipe", path, "--write-recipe", "-").stdout
    assert [
        line for line in ("weights: random", "seed: 5", "allow-unfused: true", "opset: 24") if line not in shown
    ] == []
    typed = toolkit("export", "--recipe", path, "--weights", "pretrained", "--seed", "0", "--write-recipe", "-").stdout
    assert "weights" not in typed
    assert "seed" not in typed


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "--model and --target not given", "--recipe FILE.yaml"),
        (["--model", "vit-digits"], "--target not given", "--recipe FILE.yaml"),
        (["--recipe", "a.yaml", "--recipe", "b.yml"], "--recipe names several files: a.yaml, b.yml", "Give one"),
        (["--recipe", "a.yaml"], "cannot read a.yaml: [Errno 2]", "--write-recipe"),
        (["--model", "m", "--target", "t", "--write-recipe", ""], "the name is empty; give a file", "--help"),
        (["--model", "m", "--target", "t", "--recipe", ""], "unknown target 't'", "<runtime>-<scheme>"),
        (["--model", "m", "--target", "t", "--recipe", "block-size"], "'block-size' is no part", "block-size=64"),
        (["--model", "m", "--target", "t", "--recipe", "block-size=16", "--recipe", "block-size=32"], "twice", "once"),
    ],
)
def test_what_is_missing_or_twice_is_said(arguments: list[str], message: str, hint: str) -> None:
    result = toolkit("export", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.partition("\nhint: ")[0]
    assert hint in result.stderr.partition("\nhint: ")[2]


def test_paths_are_taken_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    (folder / "images").mkdir(parents=True)
    (folder / "vit-digits").mkdir()
    (folder / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    text = "calibration: {source: images}\nevaluation: {source: 'datasets:mnist'}\n"
    recipe = read_recipe(written(folder, GOOD + text))
    request = request_of(recipe, folder=Path("project"))
    # A short name is one, whatever lies beside the file.
    assert (request.model, request.calibration.source) == ("vit-digits", "project/images")
    assert request.evaluation == Data(source="datasets:mnist")
    assert request_of(recipe.model_copy(update={"model": "my-model"}), folder=folder).model == str(folder / "my-model")


def test_a_recipe_written_elsewhere_still_finds_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").touch()
    flags = ["--model", "vit-digits", "--target", "ort-cpu-int8", "--calibration", "images"]
    flags += ["--evaluation", "texts.jsonl#body"]
    assert toolkit("export", *flags, "--write-recipe", "recipes/r.yaml").exit_code == 0
    assert toolkit("export", *flags, "--write-recipe", "r.yaml").exit_code == 0
    assert read_recipe(Path("recipes/r.yaml")).calibration.source == str(tmp_path / "images")
    assert read_recipe(Path("recipes/r.yaml")).evaluation == Data(source=f"{tmp_path}/texts.jsonl#body")
    assert read_recipe(Path("r.yaml")).calibration.source == "images"
    assert toolkit("export", "--recipe", "recipes/r.yaml", "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("targts: [a]", "line 3, column 1: unknown key 'targts'. Did you mean targets"),
        (
            "quantization:\n  blocksize: 64",
            "line 4, column 3: unknown key 'quantization.blocksize'. Did you mean block-size",
        ),
        ("calibration: {sauce: x}", "line 3, column 15: unknown key 'calibration.sauce'"),
        ("evaluation:\n  kount: 3", "line 4, column 3: unknown key 'evaluation.kount'. Did you mean count"),
        ("build:\n  arch: [sm80]\n  memroy: 3", "line 5, column 3: unknown key 'build.memroy'. Did you mean memory"),
        ("seed: many", "line 3, column 1: seed: Input should be a valid integer"),
        ("seed: -1", "line 3, column 1: seed: "),
        ("dims:\n  batch: 1-8-64", "line 4, column 3: dims.batch: '1-8-64' is not of the form MIN:OPT:MAX"),
        ("quantization:\n  layers:\n    '*.fc1': int3", "line 5, column 5: quantization.layers.*.fc1: Input should be"),
        ("quantization:\n  exclude:\n  - a\n  - [b]", "line 6, column 5: quantization.exclude.1: Input should be"),
        (
            "quantization:\n  block-size: 48",
            "line 4, column 3: quantization.block-size: Input should be 16, 32",
        ),
        ("gate:\n  sqnr: high", "line 4, column 3: gate.sqnr: Input should be a valid number"),
        ("build:\n  arch: [sm80, 89]", "line 4, column 16: build.arch.1: Input should be a valid string"),
        ("seed: 1\nseed: 2", 'line 4, column 1: found duplicate key "seed"'),
        ("\tseed: 1", "line 3, column 1: found character '\\t'"),
        ("seed: 'x", "line 4, column 1: found unexpected end of stream"),
        ("quantization: {exclude: [*.fc1]}", "found undefined alias"),
        ("---\nmodel: x", "found another document"),
        ("version: 2", "line 3, column 1: version 2, this toolkit reads up to 1"),
        ("version: one", "line 3, column 1: version: Input should be 1"),
        ("weights: own", "line 3, column 1: weights: Input should be 'pretrained' or 'random'"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + line + "\n")
    assert message in str(refused(path))
    assert str(refused(path)).startswith(str(path))


def test_a_pattern_without_quotes_is_told_to_take_some(tmp_path: Path) -> None:
    error = refused(written(tmp_path, GOOD + "quantization:\n  layers:\n    *.fc1: fp32\n"))
    assert "line 5, column 5" in str(error)
    assert '"*.fc1": fp32' in error.hint


def bomb() -> str:
    """Eleven levels of ten aliases each: 10^11 entries in 700 bytes."""
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)]
    return "a0: &a0 [x, x]\n" + "".join(levels) + "model: *a11\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no mapping"),
        (b"# nothing\n", "holds no mapping"),
        (b"- model\n", "holds no mapping"),
        (b"just words", "holds no mapping"),
        ("model: vit\u00e9\n".encode("latin-1"), "'utf-8' codec can't decode byte"),
        (b"model: \x00\n", "cannot read"),
        (bomb().encode(), "larger or nested deeper"),
        (b"model: &a [*a]\n", "model: Input should be a valid string"),
        (b"model: " + b"[" * 3000, "larger or nested deeper"),
        (b"# " + b"x" * (1 << 20), "larger or nested deeper"),
    ],
)
def test_what_is_no_recipe_is_refused_at_once(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in str(refused(written(tmp_path, content)))


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())).model == "vit-digits"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: vit-digits\ntargets:\n- ort-cpu-fp32\n- ort-cpu-int9\n",
            "line 4, column 3: unknown target 'ort-cpu-int9'",
        ),
        ("model: vit-digits\ntargets: [ort-cpu-fp8]\n", "line 2, column 11: there is no ort-cpu-fp8"),
        (GOOD + "gate:\n  sqnx: 3\n", "line 4, column 3: cannot read 'sqnx=3'"),
        (GOOD + "gate:\n  cosine: 3\n", "line 4, column 3: '3' is no value for 'cosine'"),
        (GOOD + "dims:\n  btch: 1:8:64\n", "line 4, column 3: this model has no dimension 'btch'"),
        (GOOD + "dims: {batch: 8:1:2}\n", "line 3, column 8: dimension batch=8:1:2 must rise"),
        (GOOD + "quantization:\n  rounding: awq\n", "line 4, column 3: scheme 'int8' has no 'rounding'"),
        (GOOD + "calibration:\n  source: nowhere\n", "line 4, column 3: there is no "),
        (GOOD + "opset: 3\n", "line 3, column 1: opset 3 is not one"),
        (GOOD + "last-logits: true\n", "line 3, column 1: --last-logits is for language models"),
        (GOOD + "task: fill-mask\n", "line 3, column 1: no task 'fill-mask' for"),
        (GOOD + "build:\n  timeout: 9\n", "line 4, column 3: --build-timeout is not for ort-cpu-int8"),
        ("model: vit-digit\ntargets: [ort-cpu-fp32]\n", "line 1, column 1: "),
        (
            "model: vit-digits\ntargets: [trt-fp16]\nquantization:\n  layers: {'*': int8}\n",
            "line 4, column 3: layers of trt-fp16 cannot be int8",
        ),
    ],
)
def test_what_the_file_means_wrongly_is_named_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ToolkitError) as caught:
        plan_of([str(path)], {"offline": True})
    assert str(caught.value).startswith(f"{path}, ")
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_wrong_flag_over_a_good_file_is_not_the_files_fault(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of([str(written(tmp_path, GOOD))], {"targets": ("ort-cpu-int9",)})
    assert str(caught.value) == "unknown target 'ort-cpu-int9'"


def test_a_pattern_that_the_model_has_no_module_for_is_named_by_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "quantization:\n  exclude: ['*.fc1', '*.fc3']\n  layers:\n    '*.fc2': fp32\n")
    with pytest.raises(UsageError, match=r"line 4, column 22: the pattern '\*\.fc3' matches no"), located([str(path)]):
        raise UsageError("the pattern '*.fc3' matches no Linear of the model")
    with pytest.raises(DriftError, match=r"^output .logits.: cosine"), located([str(path)]):
        raise DriftError("output 'logits': cosine 0.9 is below")


def test_one_targets_recipe_has_nothing_that_only_the_others_take() -> None:
    recipe = Recipe(
        model="vit-digits",
        targets=("ort-cpu-fp32", "ort-cpu-int8", "trt-int4"),
        quantization=Quantization(block_size=64, smoothing=0.5, exclude=("*.fc1",), layers={"*.fc2": "fp32"}),
        build=Build(timeout=60),
    )
    the_plan = plan(request_of(recipe))
    fp32, int8, int4 = (recipe_for(the_plan.request, target, the_plan.spec) for target in the_plan.targets)
    assert (fp32.targets, fp32.quantization, fp32.build) == (("ort-cpu-fp32",), Quantization(), Build())
    assert int8.quantization == recipe.quantization.model_copy(update={"block_size": None})
    assert int4.quantization == recipe.quantization.model_copy(update={"smoothing": None})
    assert int4.build == Build(timeout=60)
    for each in (fp32, int8, int4):
        plan(request_of(each))


def test_a_bundles_recipe_pins_the_commit_that_was_exported() -> None:
    the_plan = plan(request_of(Recipe(model="vit-digits", targets=("ort-cpu-fp32",))))
    spec = replace(the_plan.spec, revision="0123abc")
    assert recipe_for(the_plan.request, the_plan.targets[0], spec).revision == "0123abc"


@pytest.mark.heavy
def test_a_bundle_makes_itself_again(tmp_path: Path) -> None:
    text = GOOD + "quantization:\n  layers: {'*.fc2': fp32, '*.0.attention.*': int4}\n  block-size: 16\n"
    (first,) = export(plan_of([str(written(tmp_path, text))], {"output": tmp_path / "first"}))
    recipe = first / "recipe.yaml"
    assert "recipe.yaml" in open_bundle(first).manifest.files
    assert verify_hashes(open_bundle(first)) == []
    assert "makes the bundle again" in toolkit("inspect", first).stdout
    (second,) = export(plan_of([str(recipe)], {"output": tmp_path / "second"}))
    assert graph_sha256(first / "model.onnx") == graph_sha256(second / "model.onnx")
    assert recipe.read_text() == (second / "recipe.yaml").read_text()
    named = {step.what: step.count for step in open_bundle(second).manifest.steps if "named" in step.what}
    assert named == {"Linears named fp32": 4, "Linears named int4": 4}


def test_the_documented_recipe_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        recipe = read_recipe(written(tmp_path, block))
        plan(replace(request_of(recipe), calibration=Data(), evaluation=None))
    commented = {"task", "revision", "weights", "last_logits", "allow_unfused"}
    fields = set(read_recipe(written(tmp_path, blocks[0])).model_dump(exclude_defaults=True))
    assert fields == set(Recipe.model_fields) - {"version", *commented}
    assert all(f"# {key.replace('_', '-')}:" in blocks[0] for key in commented)


def test_what_is_written_is_read_by_people_too() -> None:
    recipe = Recipe(model="m", targets=("t",), dims={"batch": Dim(1, 8, 64), "sequence": Dim(4, 4, 4)})
    assert "batch: 1:8:64" in dump_recipe(recipe)
    assert "sequence: 4\n" in dump_recipe(recipe)
