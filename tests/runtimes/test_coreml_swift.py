"""The Swift sources of Core ML bundles, as far as they can be held to something where no Swift compiler is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtimes import coreml

SOURCES = sorted((Path(coreml.__file__).parent / "swift").glob("*.swift"))
CONTRACT = Path(__file__).parents[2] / "docs" / "selftest.md"


def test_there_are_the_two_sources_that_a_bundle_carries() -> None:
    assert [path.name for path in SOURCES] == ["CoreMLModel.swift", "selftest.swift"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_source_parses(path: Path) -> None:
    parser = pytest.importorskip("tree_sitter", reason="tree-sitter is not installed")
    swift = pytest.importorskip("tree_sitter_swift", reason="tree-sitter-swift is not installed")
    tree = parser.Parser(parser.Language(swift.language())).parse(path.read_bytes())
    assert not tree.root_node.has_error


def test_the_self_test_says_what_the_contract_says() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    contract = CONTRACT.read_text(encoding="utf-8")
    for words in (
        "another SHA-256 than the manifest's", "this program reads 1", "NaN, infinite or above 1e100",
        "the gate asks for at least", "selftest passed", "selftest FAILED: ", "unchanged",
    ):  # fmt: skip
        assert words in contract
        assert words in text
    assert {"min_sqnr_db", "min_cosine", "max_relative_l2", "max_abs"} <= set(re.findall(r'gate\["(\w+)"\]', text))
