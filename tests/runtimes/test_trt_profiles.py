"""Optimization profiles: whatever generation feeds an engine lies within one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_zoo import resolve
from runtimes._tensorrt.job import Profile
from runtimes._tensorrt.profiles import profiles_of
from toolkit.errors import UsageError
from toolkit.generation.generate import PREFILL_CHUNK, Generation, prefill
from toolkit.generation.rows import Rows
from toolkit.generation.speculative import speculate
from toolkit.types import DecoderSpec, Dim, ModelSpec, TensorSpec

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}  # fmt: skip
AHEAD = 4


PAST = ("batch", 1, "past_sequence", 8)
INPUTS = (
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
    TensorSpec("past_key_values.0.key", "float32", PAST),
    TensorSpec("past_key_values.0.value", "float32", PAST),
)
DECODER = DecoderSpec(layers=1, vocabulary=8, context=2048)


def language(sequence: Dim, total: Dim, past: Dim | None = None) -> ModelSpec:
    dims = {
        "batch": Dim(1, 1, 4),
        "sequence": sequence,
        "total_sequence": total,
        "past_sequence": past or Dim(1, max(1, min(total.opt, total.max - 1)), total.max),
    }
    return ModelSpec("m", "f", "decoder", "text-generation", "s", "A", INPUTS, (), dims, decoder=DECODER)


def static(spec: ModelSpec) -> ModelSpec:
    """What lowering with a static cache makes of the inputs."""
    length = spec.dims["total_sequence"].max
    ids, mask, *rest = (
        replace(item, shape=tuple(length if dim in ("past_sequence", "total_sequence") else dim for dim in item.shape))
        for item in spec.inputs
    )
    return replace(spec, inputs=(ids, mask, *rest, TensorSpec("write_indices", "int64", ("batch",))))


@st.composite
def ranges(draw: st.DrawFn, largest: int = 2048) -> Dim:
    low, middle, high = sorted(draw(st.integers(1, largest)) for _ in range(3))
    return Dim(low, middle, high)


def holding(profiles: tuple[Mapping[str, Profile], ...], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
    for index, profile in enumerate(profiles):
        bounds = ((profile[name][0], shape, profile[name][2]) for name, shape in shapes.items())
        if all(low <= size <= high for bound in bounds for low, size, high in zip(*bound, strict=True)):
            yield index


def shapes_of(spec: ModelSpec, new: int, past: int, rows: int = 1) -> dict[str, tuple[int, ...]]:
    sizes = {"batch": rows, "sequence": new, "past_sequence": past, "total_sequence": new + past}
    return {item.name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in item.shape) for item in spec.inputs}


class Recorder(Rows):
    """Answers nothing of interest and remembers (new, past) of every step."""

    ran_on = "nothing"

    def __init__(self, limit: int) -> None:
        super().__init__(DECODER, limit=limit, rows=1)
        self.steps: list[tuple[int, int]] = []

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        self._check(tokens, lengths, every)
        self.steps.append((tokens.shape[1], int(self._lengths.max())))
        self._lengths = self._lengths + lengths
        return self._answer(np.zeros((*tokens.shape, DECODER.vocabulary), np.float32), lengths, every)

    def close(self) -> None:
        """Nothing is held."""


def fed(prompt: int, limit: int, chunk: int) -> list[tuple[int, int]]:
    """(new, past) of every step of a prompt, of single tokens behind it, and of checks of drafted tokens."""
    decoder, draft = Recorder(limit), Recorder(limit)
    text = np.ones(prompt, np.int64)
    settings = Generation(max_new_tokens=3 * AHEAD, prefill_chunk=chunk)
    prefill(decoder, [text], settings)
    singles = [(1, past) for past in {prompt, (prompt + limit) // 2, limit - 1} if prompt <= past < limit]
    # A check is of up to AHEAD + 1 tokens at once, which an engine for shorter chunks does not take.
    if chunk > AHEAD:
        list(speculate(decoder, draft, text, settings, ahead=AHEAD))
    return decoder.steps + draft.steps + singles


@settings(deadline=None, max_examples=60)
@given(ranges(), ranges(), st.data())
def test_every_step_of_generation_fits_a_profile(sequence: Dim, total: Dim, data: st.DataObject) -> None:
    spec = language(sequence, total)
    prompt = data.draw(st.integers(min(sequence.min, total.max), total.max))
    for made in (spec, static(spec)):
        profiles = profiles_of(made)
        for new, past in fed(prompt, total.max, min(sequence.max, PREFILL_CHUNK)):
            chosen = next(holding(profiles, shapes_of(made, new, past)), None)
            assert chosen is not None, (new, past)
            if new == 1 and past:
                assert chosen == len(profiles) - 1, "the profile with the single-query kernel"


def test_prompts_a_little_longer_than_a_chunk_fit_where_they_fill_the_cache() -> None:
    profiles = profiles_of(language(Dim(1, 128, 520), Dim(1, 128, 520)))
    spec = language(Dim(1, 128, 520), Dim(1, 128, 520))
    for total in range(513, 521):
        assert list(holding(profiles, shapes_of(spec, total - 512, 512)))


@settings(deadline=None, max_examples=100)
@given(ranges(), ranges(), ranges())
def test_profiles_rise_and_agree_at_their_corners(sequence: Dim, total: Dim, past: Dim) -> None:
    for profile in profiles_of(language(sequence, total, past)):
        for low, usual, high in profile.values():
            assert all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
        corners = zip(profile["input_ids"], profile["past_key_values.0.key"], profile["attention_mask"], strict=True)
        assert all(ids[1] + cache[2] == mask[1] for ids, cache, mask in corners)


def test_a_given_past_is_what_decoding_is_tuned_for() -> None:
    _, chunk, decode = profiles_of(language(Dim(1, 32, 512), Dim(1, 64, 512), Dim(1, 300, 512)))
    assert chunk["past_key_values.0.key"][1][2] == 300
    assert decode["past_key_values.0.key"] == ((1, 1, 1, 8), (1, 1, 300, 8), (4, 1, 511, 8))


def test_a_cache_of_fixed_length_has_a_profile_for_several_tokens_and_one_for_one() -> None:
    several, single = profiles_of(static(language(Dim(1, 32, 512), Dim(1, 64, 256))))
    assert several["input_ids"] == ((1, 2), (1, 32), (4, 256))
    assert single["input_ids"] == ((1, 1), (1, 1), (4, 1))
    assert single["past_key_values.0.key"] == ((1, 1, 256, 8), (1, 1, 256, 8), (4, 1, 256, 8))
    assert single["write_indices"] == ((1,), (1,), (4,))


def test_a_past_that_ends_before_the_whole_is_refused_with_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UsageError, match="lets it reach 2047") as caught:
        resolve(str(tmp_path), weights="random", dims={"past_sequence": Dim(1, 32, 64)})
    assert "--dim total_sequence=1:65:65" in caught.value.hint
    spec = resolve(
        str(tmp_path), weights="random", dims={"past_sequence": Dim(1, 32, 64), "total_sequence": Dim(1, 40, 65)}
    )
    assert profiles_of(spec)[-1]["past_key_values.0.key"][1][2] == 32


def test_every_named_dimension_of_an_encoder_has_its_range() -> None:
    inputs = (
        TensorSpec("x", "float32", ("batch", 3, "height", "width")),
        TensorSpec("mask", "bool", ("batch", "height")),
        TensorSpec("scale", "float32", (1,)),
    )
    dims = {"batch": Dim(1, 2, 8), "height": Dim(32, 64, 96), "width": Dim(16, 48, 128)}
    (profile,) = profiles_of(ModelSpec("m", "f", "vision", "raw", "s", "A", inputs, (), dims))
    assert profile == {
        "x": ((1, 3, 32, 16), (2, 3, 64, 48), (8, 3, 96, 128)),
        "mask": ((1, 32), (2, 64), (8, 96)),
    }
