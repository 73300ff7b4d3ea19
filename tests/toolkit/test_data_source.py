"""How a data set is called: parts of a source, paths beside a recipe file, and the options that say the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.commands.export import _data
from toolkit.data_source import beside, parse_source, require_there
from toolkit.errors import UsageError
from toolkit.plan import Request, plan
from toolkit.recipe.command import _over
from toolkit.recipe.document import Data
from toolkit.recipe.file import dump_recipe, read_recipe
from toolkit.recipe.request import recipe_of, request_of


def parts(text: str, column: str = "") -> tuple[str, str, str, str, str]:
    source = parse_source(Data(source=text, column=column))
    return source.name, source.config, source.split, source.column, source.label


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datasets:imdb", ("imdb", "", "", "", "")),
        ("datasets:nyu-mll/glue/sst2:test#sentence,label", ("nyu-mll/glue", "sst2", "test", "sentence", "label")),
        ("datasets:owner/name:test", ("owner/name", "", "test", "", "")),
        ("datasets:owner/name#body", ("owner/name", "", "", "body", "")),
    ],
)  # fmt: skip
def test_a_data_set_of_the_hub(text: str, expected: tuple[str, ...]) -> None:
    assert parts(text) == expected
    assert parse_source(Data(source=text)).path is None


def test_a_data_set_that_lies_here(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    for place in (tmp_path, tmp_path / "a:b"):
        assert parts(f"datasets:{place}") == (str(place), "", "", "", "")
        assert parts(f"datasets:{place}/sub:dev#x,y") == (str(place), "sub", "dev", "x", "y")
        assert parse_source(Data(source=f"datasets:{place}:dev")).path == place


def test_a_folder_that_is_called_as_an_owner_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parts("datasets:owner/name") == ("owner/name", "", "", "", "")
    assert parts("datasets:./owner/name") == ("./owner", "name", "", "", "")
    assert parts("datasets:owner:dev") == ("owner", "", "dev", "", "")
    assert parse_source(Data(source="datasets:owner")).path == Path("owner")


def test_columns_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "odd#name.jsonl").touch()
    assert parts(f"{tmp_path}/a.jsonl#body,kind")[3:] == ("body", "kind")
    assert parts(f"{tmp_path}/a.jsonl", "body,kind")[3:] == ("body", "kind")
    assert parts(f"{tmp_path}/a.jsonl#body", "body")[3:] == ("body", "")
    assert parse_source(Data(source=f"{tmp_path}/odd#name.jsonl")).path == tmp_path / "odd#name.jsonl"


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("a.txt#body", "", "a.txt has no columns"),
        ("a.npz", "body", "a.npz has no columns"),
        ("a.jsonl#one", "two", "name two columns"),
        ("datasets:", "", "names no data set"),
        ("datasets:a/b/c/d", "", "names no data set"),
        ("datasets:./nowhere", "", "names no data set"),
        ("datasets:/nowhere/at/all", "", "names no data set"),
        ("nowhere", "", "there is no nowhere to take inputs from"),
        ("nowhere.jsonl#body", "", "there is no nowhere.jsonl"),
    ],
)
def test_names_that_are_none(text: str, column: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        require_there(Data(source=text, column=column))
    assert caught.value.hint


def test_paths_beside_a_file(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "a.jsonl").touch()
    assert beside("set", tmp_path) == f"{tmp_path}/set"
    assert beside("a.jsonl#body", tmp_path) == f"{tmp_path}/a.jsonl#body"
    assert beside("datasets:set/config:dev#x", tmp_path) == f"datasets:{tmp_path}/set/config:dev#x"
    for elsewhere in ("datasets:owner/name:dev", "nowhere", "", "#"):
        assert beside(elsewhere, tmp_path) == elsewhere


def options(**given: object) -> Request:
    return _over(Request(model="m", targets=("t",)), _data(dict(given)))


def test_the_options_say_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\nmodel: vit-digits\ntargets: [ort-cpu-int8]\n"
        "calibration: {source: train, count: 100, seed: 3}\n"
        "evaluation: {source: 'a.jsonl', count: 50, seed: 3, column: 'body,kind'}\n"
    )
    request = request_of(read_recipe(path), folder=tmp_path)
    given = options(calibration="train", calibration_count=100, evaluation="a.jsonl", evaluation_count=50, data_seed=3)
    assert given.calibration == request.calibration
    assert given.evaluation == request.evaluation.model_copy(update={"column": ""})
    assert "column: body,kind" in dump_recipe(recipe_of(request))
    assert read_recipe(path) == recipe_of(request)


def test_a_number_is_a_count() -> None:
    assert options(calibration="32").calibration == Data(count=32)
    assert options(calibration="32", calibration_count=32).calibration == Data(count=32)
    assert options().evaluation is None
    assert options(data_seed=3) == replace(options(), calibration=Data(seed=3))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"calibration": "32", "calibration_count": 16}, "32 and --calibration-count 16 differ"),
        ({"calibration": "0"}, "no samples"),
        ({"evaluation": ""}, "--evaluation is empty"),
        ({"calibration": ""}, "--calibration is empty"),
    ],
)
def test_options_that_say_nothing(given: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        options(**given)


def test_none_is_no_evaluation_also_where_a_file_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    given = replace(options(evaluation="none", data_seed=3), model="vit-digits", targets=("ort-cpu-fp32",))
    made = plan(given)
    assert made.evaluate() is None
    assert replace(made, request=replace(made.request, evaluation=None)).evaluate() is not None
    assert beside("none", tmp_path) == "none"
    with pytest.raises(UsageError, match="goes with a set of your own"):
        plan(replace(given, evaluation=Data(source="none", count=5)))
    with pytest.raises(UsageError, match="the bound on top1 could hold"):
        plan(replace(given, drift_gate="sqnr=20,top1=0.9"))
    assert plan(replace(given, drift_gate="sqnr=20")).evaluate() is None


def test_a_count_of_evaluation_samples_wants_a_set() -> None:
    request = replace(options(evaluation_count=5), model="vit-digits", targets=("ort-cpu-fp32",))
    with pytest.raises(UsageError, match="goes with a set of your own"):
        plan(request)
