"""Weights go with their module, whoever still refers to them; those of a module that is kept stay."""

from __future__ import annotations

import torch
from torch import nn

from toolkit.memory import Weights


def test_weights_that_only_a_cache_holds_are_freed():
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    cache = [*module.parameters(), *module.buffers()]
    weights = Weights(module)
    del module
    weights.free()
    assert [tensor.untyped_storage().nbytes() for tensor in cache] == [0] * len(cache)


def test_a_module_that_somebody_keeps_stays_whole():
    inner = nn.Linear(4, 4)
    outer = nn.Sequential(inner)
    weights = Weights(outer)
    del outer
    weights.free()
    assert inner(torch.ones(1, 4)).shape == (1, 4)
