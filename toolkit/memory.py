"""Giving memory back to the system, where what is done with would stay with the process."""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = ["Weights", "give_back"]


class Weights:
    """A module's weights, to be freed once nobody has the module any more; take it before the last use.

    After an export they do not go by themselves: onnxscript's rewriter keeps the last graph that it matched, and that
    graph the module's parameters. Their memory goes whoever shares it: no array may be a view of a weight then.
    """

    def __init__(self, module: Module) -> None:
        self._modules = [weakref.ref(each) for each in module.modules()]
        self._tensors = [*module.parameters(), *module.buffers()]

    def free(self) -> None:
        """Free them where the module and all in it are gone: a factory may keep its own and answer it again."""
        gc.collect()
        if all(each() is None for each in self._modules):
            for tensor in self._tensors:
                _free(tensor)
        self._tensors.clear()
        give_back()


def _free(tensor: Tensor) -> None:
    storage = tensor.untyped_storage()
    if storage.resizable():
        storage.resize_(0)
    else:
        tensor.data = tensor.data.new_empty(0)


def give_back() -> None:
    """Collect what is unreachable, and return what the C library keeps of freed memory; only glibc knows how.

    It keeps freed weights for later allocations: blocks of up to 32 MB stay in its heap once one such was freed
    (mallopt(3), M_MMAP_THRESHOLD), so a model that is gone would still be resident beside the next one.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        # Another C library: what it keeps is its own business.
        return
