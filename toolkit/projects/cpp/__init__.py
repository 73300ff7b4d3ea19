"""A C++17 project with CMake: ONNX Runtime's C++ API, and TensorRT where its headers are given; nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from toolkit.bundle.read import Bundle
from toolkit.cache_names import WRITE_INDICES
from toolkit.errors import UnsupportedError

__all__ = ["PROJECT", "CppProject"]

_TEMPLATES = Path(__file__).parent / "templates"
_GRAPHS = (".onnx", ".ort")
_BUNDLES = "@BUNDLES@"
_CONFIGURE = "cmake -B build -DORT_INCLUDE_DIR=HEADERS -DORT_LIBRARY=libonnxruntime.so.1"


class CppProject:
    """The same sources for every bundle: a program opens whichever it is given. Its README lists these."""

    def check(self, bundle: Bundle) -> None:
        """Raise UnsupportedError for an engine that is neither a graph for ONNX Runtime nor TensorRT's."""
        engine = bundle.manifest.engine
        target = f"{bundle.manifest.target.runtime}-{bundle.manifest.target.scheme}"
        if not (any(file.endswith(".plan") for file in engine.files) or _opens_its_graph(bundle)):
            held = ", ".join(engine.files[:3]) or f"nothing but its graph: {engine.reason}"
            raise UnsupportedError(
                f"the C++ program does not run {target}: its engine is {held}",
                hint="It runs ort-… and trt-… targets: export with --target ort-cpu-int8, for example.",
            )
        if any(item.name == WRITE_INDICES for item in engine.inputs):
            raise UnsupportedError(
                f"the C++ program does not drive the cache of fixed length of {bundle.folder}",
                hint="Export again without --cache static.",
            )

    def write(self, bundles: Sequence[Bundle], folder: Path) -> str:
        """Copy the sources and name the bundles in the README; answers what to type next."""
        shutil.copytree(_TEMPLATES, folder, dirs_exist_ok=True)
        readme = folder / "README.md"
        listed = "\n".join(f"- `{bundle.folder.name}`: `build/{_program(bundle)}`" for bundle in bundles)
        readme.write_text(readme.read_text(encoding="utf-8").replace(_BUNDLES, listed), encoding="utf-8")
        tests = [f"build/selftest {bundle.folder.absolute()}" for bundle in bundles]
        return "\n".join(["In that folder (README.md says where the headers come from):", _CONFIGURE,
                          "cmake --build build -j", *tests])  # fmt: skip


def _opens_its_graph(bundle: Bundle) -> bool:
    graph = bundle.manifest.graph
    return graph in bundle.manifest.engine.files and graph.endswith(_GRAPHS)


def _program(bundle: Bundle) -> str:
    """The example for the model's kind; the self-test is for all."""
    model = bundle.manifest.model
    if model.kind == "decoder":
        return "generate"
    if model.task.endswith("-classification"):
        return "classify"
    return "embed" if model.task == "embedding" else "selftest"


PROJECT = CppProject()
