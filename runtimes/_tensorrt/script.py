"""What a bundle carries so that its engine can be built elsewhere: our builder as a script, and NVIDIA's command."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtimes._tensorrt import builder
from runtimes._tensorrt.job import Profile
from runtimes._tensorrt.libraries import RTX, Library

__all__ = ["SCRIPT_FILE", "tool_command", "write_script"]

SCRIPT_FILE = "build_engine.py"

_TOOLS: dict[Library, str] = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}


def write_script(folder: Path) -> Path:
    """Put the builder's source beside the graph; it imports nothing of ours. Answers its name."""
    shutil.copyfile(builder.__file__, folder / SCRIPT_FILE)
    return Path(SCRIPT_FILE)


def tool_command(library: Library, graph: str, profiles: Sequence[Mapping[str, Profile]]) -> str:
    """NVIDIA's own command with the same profiles and flags; it makes one engine, for its own GPU.

    `trtexec` of TensorRT 10.14 and later: 11 does without `--stronglyTyped`, 10 needs it. The tool of TensorRT-RTX has
    no documented flag that lets attention in fp32 be split: there the script is the way.
    """
    parts = [_TOOLS[library], f"--onnx={graph}", "--saveEngine=engine.plan", "--skipInference"]
    if library != RTX:
        parts += ["--stronglyTyped", "'--decomposableAttentions=*'", "--noTF32", "--profilingVerbosity=detailed"]
    for number, shapes_of in enumerate(profiles):
        parts += [f"--profile={number}"] if len(profiles) > 1 else []
        for index, flag in enumerate(("minShapes", "optShapes", "maxShapes")):
            shapes = ",".join(f"{name}:{'x'.join(map(str, profile[index]))}" for name, profile in shapes_of.items())
            parts += [f"--{flag}={shapes}"] if shapes else []
    return " ".join(parts)
