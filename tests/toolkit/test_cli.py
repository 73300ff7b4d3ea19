"""The command line's frame: lazy commands, messages, exit codes, signals."""

from __future__ import annotations

import ast
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit import console
from toolkit.cli import CommandFolder, main

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(path for path in (ROOT / "toolkit" / "commands").glob("*.py") if path.stem != "__init__")
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "pydantic", "rich", "torch", "transformers"}

ODD_COMMANDS = {
    "usage": "from toolkit.errors import UsageError\nraise UsageError('bad name', hint='Try a, b.')",
    "missing": "from toolkit.errors import MissingDependencyError\nraise MissingDependencyError('no x', hint='pip')",
    "unsupported": "from toolkit.errors import UnsupportedError\nraise UnsupportedError('not that')",
    "stage": "from toolkit.errors import StageError\nraise StageError('lower', 'it broke', hint='Mend it.')",
    "drift": "from toolkit.errors import DriftError\nraise DriftError('moved')",
    "bug": "raise RuntimeError('our bug')",
    "interrupt": "raise KeyboardInterrupt",
    "module": "raise ModuleNotFoundError('No module named timm', name='timm.models')",
    "own_module": "raise ModuleNotFoundError('No module named mine', name='mine')",
    "full": f"raise OSError({errno.ENOSPC}, 'No space left on device', '/somewhere/model.onnx')",
    "full_inside": "try:\n    raise RuntimeError('write: No space left on device')\n"
    "except RuntimeError as error:\n    from toolkit.errors import UsageError\n"
    "    raise UsageError('disk full: out', hint='Free up space.') from error",
    "noisy": "import logging, warnings\nwarnings.warn('a warning')\n"
    "logging.basicConfig()\nlogging.getLogger('transformers').warning('a log line')",
    "answered": "from toolkit.console import emit_json\nfrom toolkit.errors import DriftError\n"
    "emit_json({'passed': False})\nraise DriftError('moved')",
    "sleeps": "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\n"
    "finally:\n    print('cleaned', flush=True)",
}  # fmt: skip


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A command folder whose commands each fail in their own way."""
    package = tmp_path / "odd_commands"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name, body in ODD_COMMANDS.items():
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (package / f"{name}.py").write_text(
            f'"""Does {name}."""\nimport click\n\n@click.command()\n@click.option("--json", "as_json", is_flag=True)\n'
            f"def command(as_json):\n{lines}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("odd_commands")]:
        monkeypatch.delitem(sys.modules, name)
    return CommandFolder(name="odd", package="odd_commands", callback=main.callback, params=main.params)


def run_python(code: str, *, cwd: Path = ROOT, **kwargs):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, **kwargs
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["list", "targets"], ["list", "models", "--help"], ["nonsense"]]
)
def test_what_needs_no_heavy_library_imports_none(arguments):
    code = (
        f"import sys\nfrom toolkit.cli import main\ntry:\n    main({arguments!r})\n"
        "except SystemExit:\n    print('MODULES', *sys.modules, file=sys.stderr)"
    )
    modules = set(run_python(code).stderr.partition("MODULES")[2].split())
    assert "click" in modules
    # Tables need rich; nothing that only lists may load more than that.
    allowed = {"rich"} if arguments == ["list", "targets"] else set()
    assert not modules & (HEAVY - allowed)


def test_help_shows_every_command_with_its_docstring():
    shown = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    for path in COMMANDS:
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        assert summary
        assert f"{path.stem} {summary}" in shown


@pytest.mark.parametrize("name", [path.stem for path in COMMANDS])
def test_each_command_has_help_with_an_example_and_json(name):
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"Usage: main {name}" in result.output
    assert "Example" in result.output
    assert f"  toolkit {name} " in result.output or f"  toolkit {name}\n" in result.output
    assert "--json" in result.output
    assert "--verbose" in result.output


def test_an_unknown_command_names_the_nearest():
    result = CliRunner().invoke(main, ["chek"])
    assert result.exit_code == 2
    assert "error: unknown command 'chek'" in result.stderr
    assert "Did you mean check" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("name", "code", "message", "hint"),
    [
        ("usage", 2, "error: bad name", "hint: Try a, b."),
        ("missing", 3, "error: no x", "hint: pip"),
        ("unsupported", 4, "error: not that", ""),
        ("stage", 5, "error: lower: it broke", "hint: Mend it."),
        ("drift", 6, "error: moved", ""),
        ("module", 3, "error: timm is not installed", "hint: pip install timm"),
        ("full", 5, "error: write: no space left on the device while writing /somewhere/model.onnx", "hint: Free"),
        ("full_inside", 5, "error: write: disk full: out", "hint: Free up space."),
        ("interrupt", 130, "interrupted, nothing was left behind", ""),
    ],
)
def test_errors_become_messages_and_exit_codes(odd, name, code, message, hint):
    result = CliRunner().invoke(odd, [name])
    assert result.exit_code == code
    assert message in result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_an_error_is_json_too_where_json_was_asked_for(odd):
    result = CliRunner().invoke(odd, ["stage", "--json"])
    assert json.loads(result.stdout) == {
        "error": {"type": "StageError", "message": "lower: it broke", "hint": "Mend it.", "exit_code": 5}
    }
    assert "error: lower: it broke" in result.stderr


def test_stdout_holds_one_json_document_when_the_report_came_first(odd):
    result = CliRunner().invoke(odd, ["answered", "--json"])
    assert result.exit_code == 6
    assert json.loads(result.stdout) == {"passed": False}


def test_a_wrong_option_exits_2_and_is_json_where_asked():
    result = CliRunner().invoke(main, ["list", "targets", "--json", "--nonsense"])
    assert result.exit_code == 2
    described = json.loads(result.stdout)["error"]
    assert described["type"] == "UsageError"
    assert "--nonsense" in described["message"]


@pytest.mark.parametrize(("name", "kind"), [("bug", RuntimeError), ("own_module", ModuleNotFoundError)])
def test_a_bug_of_ours_keeps_its_traceback(odd, name, kind):
    result = CliRunner().invoke(odd, [name])
    assert result.exit_code == 1
    assert isinstance(result.exception, kind)


def test_library_messages_are_hidden_unless_asked_for(odd, tmp_path):
    def noise(*arguments):
        code = (
            "from toolkit.cli import CommandFolder, main\n"
            "CommandFolder(name='odd', package='odd_commands', callback=main.callback, params=main.params)"
            f".main({list(arguments)!r})"
        )
        return run_python(code, cwd=tmp_path).stderr

    assert "a warning" not in noise("noisy")
    assert "a log line" not in noise("noisy")
    for arguments in (["noisy", "-v"], ["-v", "noisy"]):
        assert "a warning" in noise(*arguments)
        assert "a log line" in noise(*arguments)


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_command_clean_up_and_exits_130(odd, tmp_path, number):
    code = (
        "from toolkit.cli import CommandFolder, main\n"
        "CommandFolder(name='odd', package='odd_commands', callback=main.callback, params=main.params).main(['sleeps'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == "cleaned\n"
    assert "interrupted, nothing was left behind" in stderr
    assert "Traceback" not in stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_a_clear_error():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", "list", "targets"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert "no space left on the device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes are closed as POSIX has them")
def test_a_reader_that_left_is_not_worth_a_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", "list", "targets", "--json"],
            stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr == ""


def test_json_spells_what_json_has_not():
    assert console.jsonable({"a": float("inf"), "b": (1.5, Path("x"))}) == {"a": "inf", "b": [1.5, "x"]}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (86_310_912, "86.3 MB"), (5 * 10**12, "5000.0 GB")],
)
def test_bytes_are_shown_in_decimal_units(count, text):
    assert console.byte_size(count) == text


def test_a_plain_table_is_aligned_and_never_cut(capsys):
    console.print_table([["a" * 200, 1], [None, 22]], "name", ">count", title="things")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["things", "name" + " " * 198 + "count", "a" * 200 + "  " + "    1", " " * 202 + "   22", ""]
