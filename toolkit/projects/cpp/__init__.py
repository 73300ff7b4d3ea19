"""A C++17 project with CMake: ONNX Runtime's C++ API, and TensorRT where its headers are given; nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.bundle.read import Bundle
from toolkit.projects._writing import copy_sources, require_graph, require_growing_cache

__all__ = ["PROJECT", "CppProject"]

_TEMPLATES = Path(__file__).parent / "templates"
_PROGRAM = "the C++ program"
_HINT = "It runs ort-… and trt-… targets: export with --target ort-cpu-int8, for example."
_BUNDLES = "@BUNDLES@"
_CONFIGURE = "cmake -B build -DORT_INCLUDE_DIR=HEADERS -DORT_LIBRARY=libonnxruntime.so.1"


class CppProject:
    """The same sources for every bundle: a program opens whichever it is given. Its README lists these."""

    def check(self, bundle: Bundle) -> None:
        """Raise UnsupportedError for an engine that is neither a graph for ONNX Runtime nor TensorRT's."""
        if not any(file.endswith(".plan") for file in bundle.manifest.engine.files):
            require_graph(bundle, _PROGRAM, _HINT)
        require_growing_cache(bundle, _PROGRAM)

    def write(self, bundles: Sequence[Bundle], folder: Path) -> str:
        """Copy the sources and name the bundles in the README; answers what to type next."""
        copy_sources(_TEMPLATES, folder)
        readme = folder / "README.md"
        listed = "\n".join(f"- `{bundle.folder.name}`: `build/{_program(bundle)}`" for bundle in bundles)
        readme.write_text(readme.read_text(encoding="utf-8").replace(_BUNDLES, listed), encoding="utf-8")
        tests = [f"build/selftest {bundle.folder.absolute()}" for bundle in bundles]
        return "\n".join(["In that folder (README.md says where the headers come from):", _CONFIGURE,
                          "cmake --build build -j", *tests])  # fmt: skip


def _program(bundle: Bundle) -> str:
    """The example for the model's kind; the self-test is for all."""
    model = bundle.manifest.model
    if model.kind == "decoder":
        return "generate"
    if model.task.endswith("-classification"):
        return "classify"
    return "embed" if model.task == "embedding" else "selftest"


PROJECT = CppProject()
