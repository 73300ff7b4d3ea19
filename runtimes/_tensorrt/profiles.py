"""Optimization profiles: the ranges of shapes that an engine is compiled for, one profile for each way of use."""

from __future__ import annotations

from collections.abc import Mapping

from runtimes._tensorrt.job import Profile
from toolkit.errors import StageError
from toolkit.generation.generate import PREFILL_CHUNK
from toolkit.generation.static_cache import has_static_cache
from toolkit.types import Dim, ModelSpec

__all__ = ["profiles_of"]


def profiles_of(spec: ModelSpec) -> tuple[dict[str, Profile], ...]:
    """The smallest, usual and largest shape of every input with a dynamic dimension, once for each way of use.

    A language model has up to three: prefill, with an empty cache; several tokens after a past, as chunks of a prompt
    and speculative decoding have; and decoding, one token after a past, the only one with TensorRT's single-query
    kernel. With a cache of fixed length nothing tells the first two apart, so it has two. No step lies in two of them.
    Raises StageError for a dimension without a range.
    """
    if spec.decoder is None:
        return (_profile(spec, spec.dims),)
    uses = _static_uses(spec.dims) if has_static_cache(spec.inputs) else _uses(spec.dims)
    return tuple(_profile(spec, {**spec.dims, **dims}) for dims in uses)


def _static_uses(dims: Mapping[str, Dim]) -> list[dict[str, Dim]]:
    longest = _longest(dims)
    several = [{"sequence": _within(Dim(2, dims["sequence"].opt, longest))}] if longest > 1 else []
    return [*several, {"sequence": Dim(1, 1, 1)}]


def _uses(dims: Mapping[str, Dim]) -> list[dict[str, Dim]]:
    """Every split of a prompt that generation makes, and what follows it, fits one of them."""
    sequence, past, total = dims["sequence"], dims["past_sequence"], dims["total_sequence"].max
    chunk = min(_longest(dims), PREFILL_CHUNK)
    uses = [_lengths(_within(Dim(min(sequence.min, chunk), sequence.opt, _longest(dims))), Dim(0, 0, 0))]
    if chunk > 1 and total > 2:
        # Beyond the whole at its largest corner, where the longest chunk meets the longest past; nothing else holds
        # two tokens at the end of a full cache as well.
        uses.append(_lengths(_within(Dim(2, sequence.opt, chunk)), _within(Dim(1, past.opt, total - 2))))
    if total > 1:
        uses.append(_lengths(Dim(1, 1, 1), _within(Dim(1, past.opt, total - 1))))
    return uses


def _longest(dims: Mapping[str, Dim]) -> int:
    return min(dims["sequence"].max, dims["total_sequence"].max)


def _within(dim: Dim) -> Dim:
    return Dim(dim.min, max(dim.min, min(dim.opt, dim.max)), dim.max)


def _lengths(new: Dim, past: Dim) -> dict[str, Dim]:
    """TensorRT checks the graph at each corner, so the whole must be the sum of its parts there."""
    whole = Dim(new.min + past.min, new.opt + past.opt, new.max + past.max)
    return {"sequence": new, "past_sequence": past, "total_sequence": whole}


def _profile(spec: ModelSpec, dims: Mapping[str, Dim]) -> dict[str, Profile]:
    dynamic = [tensor for tensor in spec.inputs if any(isinstance(dim, str) for dim in tensor.shape)]
    missing = {dim for tensor in dynamic for dim in tensor.shape if isinstance(dim, str) and dim not in dims}
    if missing:
        names = ", ".join(sorted(missing))
        raise StageError("build", f"no range for: {names}", hint="Give one as --dim batch=1:8:64.")

    def shape(sizes: tuple[int | str, ...], which: str) -> tuple[int, ...]:
        return tuple(int(getattr(dims[size], which)) if isinstance(size, str) else size for size in sizes)

    return {
        tensor.name: (shape(tensor.shape, "min"), shape(tensor.shape, "opt"), shape(tensor.shape, "max"))
        for tensor in dynamic
    }
