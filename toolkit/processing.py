"""What runs before and after a model, as ONNX graphs of their own: from texts or pixels to tensors, and to answers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

from toolkit.types import Tensors

__all__ = ["EXTENSIONS", "NOTHING", "Processing", "extensions_library"]

EXTENSIONS = "onnxruntime-extensions"
"""The library of operators in `ai.onnx.contrib` that a tokenizer graph needs."""


@dataclass(frozen=True, slots=True)
class Processing:
    """A graph that stands before or after a model, and how far it is from what it replaces.

    `graph` is an `onnx.ModelProto`, None where none can be made; then `reason` says why. Texts are of type string.
    `samples` are inputs and what the original (the processor, the tokenizer) makes of them; a bundle carries them.
    `exact`: every integer equals the original's and every float is within `bound` of it, on all that was `compared`.
    Where it is not exact, `reason` says on what it differs. `needs` names libraries whose operators it uses.
    """

    graph: Any = None
    samples: tuple[tuple[Tensors, Tensors], ...] = ()
    exact: bool = False
    bound: float = 0.0
    compared: str = ""
    reason: str = ""
    needs: tuple[str, ...] = ()


NOTHING = Processing(reason="nothing was made of it")


def extensions_library() -> str:
    """The file of the operators of EXTENSIONS. Raises ImportError where it is not installed.

    It is looked for, as importing the package imports transformers and torch where they are installed.
    """
    package = find_spec("onnxruntime_extensions")
    folders = package and package.submodule_search_locations
    library = folders and PathFinder.find_spec("_extensions_pydll", folders)
    if library and library.origin:
        return library.origin
    import onnxruntime_extensions  # its file lies elsewhere, or it is not installed

    path: str = onnxruntime_extensions.get_library_path()
    return path
