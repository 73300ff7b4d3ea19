"""The command line's frame: finds commands lazily, turns errors into messages and exit codes.

Imports click and nothing heavy: `toolkit --help` reads the commands' docstrings and imports none of them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import click

import toolkit
from toolkit import disk
from toolkit.errors import MissingDependencyError, StageError, ToolkitError, UsageError
from toolkit.garbage import collected_seldom, ends_at_once

__all__ = ["CommandFolder", "json_requested", "known_error", "library_messages", "main"]

INTERRUPTED = 130
_JSON = "toolkit.json"
_LOGGERS = (
    "transformers",
    "torch",
    "torch.onnx",
    "onnxscript",
    "onnx_ir",
    "onnxruntime",
    "huggingface_hub",
    "PIL",
)
_INSTALL = {
    "PIL": "pillow",
    "ruamel": "ruamel.yaml",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "tensorrt": "tensorrt-cu13",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
    **{
        name: name
        for name in (
            "huggingface_hub", "jinja2", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "platformdirs",
            "psutil", "pydantic", "rich", "safetensors", "timm", "tokenizers", "torch", "transformers",
        )
    },
}  # fmt: skip


class CommandFolder(click.Group):
    """A group whose commands are the files of a folder, each exposing a click command called `command`."""

    def __init__(self, *args: Any, package: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.package = package

    @property
    def files(self) -> dict[str, Path]:
        """Command name to source file."""
        found = importlib.util.find_spec(self.package)
        folders = (found.submodule_search_locations or ()) if found else ()
        paths = [path for folder in folders for path in Path(folder).glob("*.py")]
        return {path.stem: path for path in sorted(paths) if not path.stem.startswith("_")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the files, without reading them."""
        return list(self.files)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one file and give its command the `--verbose` that all of them take."""
        if cmd_name not in self.files:
            return None
        command: click.Command = importlib.import_module(f"{self.package}.{cmd_name}").command
        command.name = cmd_name
        if _VERBOSE not in command.params:
            command.params.append(_VERBOSE)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, except that an unknown name is answered with the nearest ones."""
        if args and not args[0].startswith("-") and args[0] not in self.files:
            raise _unknown_command(args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Name and first docstring line of every command, read from its source."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(path)) for name, path in self.files.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether the caller wants JSON, so that an error can be JSON as well."""
        ctx.meta[_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every failure the design names becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\ninterrupted, nothing was left behind", err=True)
            ctx.exit(INTERRUPTED)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            known = known_error(error)
            if known is None:
                raise
            _report(known, as_json=ctx.meta[_JSON])
            ctx.exit(known.exit_code)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """As click, with SIGTERM arriving as KeyboardInterrupt so that clean-up runs."""
        own = args is None  # what the process was started for
        with _termination_interrupts(), collected_seldom(), ends_at_once() if own else nullcontext():
            return super().main(args, *rest, **extra)


def json_requested(*, answered: bool = False) -> bool:
    """Whether `--json` was given and stdout holds no JSON yet; `answered` says that it does from now on.

    stdout carries one JSON document: a command that printed its report leaves its error to stderr.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return False
    wanted = bool(context.meta.get(_JSON))
    if answered:
        context.meta[_JSON] = False
    return wanted


def library_messages(shown: bool) -> None:
    """Let the libraries' warnings and log lines through, or hide all but their errors."""
    warnings.simplefilter("default" if shown else "ignore")
    level = logging.INFO if shown else logging.ERROR
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(level)
    os.environ["TRANSFORMERS_VERBOSITY"] = "info" if shown else "error"
    os.environ["HF_HUB_VERBOSITY"] = "info" if shown else "error"
    os.environ["TOKENIZERS_PARALLELISM"] = os.environ.get("TOKENIZERS_PARALLELISM", "false")


def _show_messages(context: click.Context, _option: click.Parameter, verbose: bool) -> None:
    if verbose or context.parent is None:
        library_messages(shown=verbose)


_VERBOSE = click.Option(
    ["-v", "--verbose"],
    is_flag=True,
    expose_value=False,
    callback=_show_messages,
    help="Show the libraries' own warnings and log lines.",
)


def _summary(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def _unknown_command(name: str, known: list[str]) -> UsageError:
    from toolkit.plugins import nearest

    return UsageError(f"unknown command '{name}'", hint=f"{nearest(name, known)}Commands: {', '.join(known)}.")


def known_error(error: Exception) -> ToolkitError | None:
    """The error as the design has it, or None for a bug of ours."""
    if disk.is_full(error):
        return _full_disk(error) if not isinstance(error, ToolkitError) else _as_stage(error)
    if isinstance(error, ToolkitError):
        return error
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "toolkit"
        return UsageError(error.format_message(), hint=f"See {command} --help.")
    if isinstance(error, ModuleNotFoundError):
        return _missing_module(error)
    return None


def _full_disk(error: Exception) -> StageError:
    files = [link.filename for link in disk.chain(error) if isinstance(link, OSError) and link.filename]
    where = f" while writing {files[0]}" if files else ""
    return StageError(
        "write",
        f"no space left on the device{where}",
        hint="Free some space, or choose another place to write to.",
    )


def _as_stage(error: ToolkitError) -> StageError:
    return error if isinstance(error, StageError) else StageError("write", str(error), hint=error.hint)


def _missing_module(error: ModuleNotFoundError) -> MissingDependencyError | None:
    name = (error.name or "").partition(".")[0]
    if name not in _INSTALL:
        return None
    return MissingDependencyError(f"{name} is not installed", hint=f"pip install {_INSTALL[name]}")


def _report(error: ToolkitError, *, as_json: bool) -> None:
    click.echo(f"error: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    if as_json:
        described = {
            "type": type(error).__name__,
            "message": str(error),
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        click.echo(json.dumps({"error": described}, indent=2))


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # A second SIGTERM must not cut the clean-up of the first short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _version(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        click.echo(f"toolkit {toolkit.__version__}")
        context.exit()


@click.group(
    cls=CommandFolder,
    package="toolkit.commands",
    params=[_VERBOSE],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n"
    "  toolkit export --model vit-digits --target ort-cpu-int8\n"
    "  toolkit check bundles/vit-digits-ort-cpu-int8",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def main() -> None:
    """PyTorch transformers to verified engines: export, quantize, build, check, run."""


if __name__ == "__main__":
    sys.exit(main(prog_name="toolkit"))
