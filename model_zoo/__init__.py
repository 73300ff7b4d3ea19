"""Models: resolving `--model` to a spec, one file a family, loading, pre-processing and sample data."""

from model_zoo._gguf import packed_weights
from model_zoo._processing import postprocessing, preprocessing
from model_zoo._resolve import resolve, short_names

__all__ = ["packed_weights", "postprocessing", "preprocessing", "resolve", "short_names"]
