"""Triton's published schema of model configurations, from the wheel `tritonclient`, without its gRPC part."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCHEMA = "tritonclient/grpc/model_config_pb2.py"


def model_config() -> Any:
    """The message class `inference.ModelConfig`. Skips where the wheel is not installed."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or found.origin is None:
        pytest.skip("Triton's schema is not here: pip install tritonclient")
    # By its path: the package around it imports grpc, which nothing here needs.
    path = Path(found.origin).parents[1] / SCHEMA
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig
