"""The README tells the truth: its links lead somewhere, and its commands are ones that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from toolkit.cli import main
from toolkit.target import parse_target

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]


def commands() -> list[list[str]]:
    lines = (line.strip().removeprefix("$ ").partition("  #")[0] for line in README.splitlines())
    return [shlex.split(line) for line in lines if re.match(r"toolkit (?!\[)\S+ \S", line) and "…" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_two_commands_of_the_first_screen_exist() -> None:
    first_screen = "\n".join(README.splitlines()[:20])
    for script in ("scripts/demo", "scripts/test"):
        assert f"./{script}" in first_screen
        assert (ROOT / script).stat().st_mode & 0o111
    assert "./scripts/test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_there_are_commands_to_test() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    context = click.Context(main)
    command = main.get_command(context, words[1])
    assert command is not None
    parsed = command.make_context(words[1], words[2:], resilient_parsing=True)
    for target in parsed.params.get("targets") or ():
        parse_target(target)
