"""The loop over decoders: what does not depend on how prompts are cut, batched, drafted or cached."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tiny_lm import (
    CONTEXT,
    VOCABULARY,
    Scripted,
    TinyLM,
    byte_tokenizer,
    save_tokenizer,
    tiny_graph,
    tiny_inputs,
    tiny_spec,
    weights,
)

from runtimes import portable_session
from toolkit.errors import StageError, UsageError
from toolkit.generation.generate import Generation, generate
from toolkit.generation.sampling import Sampling
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.generation.speculative import Acceptance, speculate
from toolkit.generation.text import read_codec

RANDOM = np.random.default_rng(7)
PROMPTS = [RANDOM.integers(0, VOCABULARY, size) for size in (5, 17, 1, 9)]
LONG = RANDOM.integers(0, VOCABULARY, 40)
DRAWING = Sampling(temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.2, seed=11)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return tiny_graph(tmp_path_factory.mktemp("lm") / "model.onnx")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return read_codec(save_tokenizer(tmp_path_factory.mktemp("tokenizer")), tiny_spec())


@pytest.fixture(params=["numpy", "graph"])
def model(request, graph):
    """Opens the same model, recomputed each time or with its cache outside the graph."""

    def opened(**settings):
        if request.param == "numpy":
            return TinyLM(**settings)
        return session_decoder(graph, **settings)

    return opened


def session_decoder(graph, *, limit=CONTEXT, rows=4, **spec):
    return SessionDecoder(portable_session(graph), tiny_inputs(), tiny_spec(**spec), limit=limit, rows=rows)


def tokens_of(events, rows=1):
    found = [[] for _ in range(rows)]
    for event in events:
        found[event.row].append(event.token)
    return found


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(repetition_penalty=1.3)])
def test_a_batch_of_ragged_prompts_says_what_each_says_alone(model, sampling):
    settings = Generation(max_new_tokens=12, sampling=sampling)
    together = tokens_of(generate(model(), PROMPTS, settings), len(PROMPTS))
    alone = [tokens_of(generate(model(), [prompt], settings))[0] for prompt in PROMPTS]
    assert together == alone
    assert all(len(row) == 12 for row in together)
    assert len({tuple(row) for row in together}) > 1


def test_the_graph_with_a_cache_says_what_the_model_without_one_says(graph):
    for sampling in (Sampling(), DRAWING):
        settings = Generation(max_new_tokens=20, sampling=sampling)
        plain = tokens_of(generate(TinyLM(), PROMPTS, settings), len(PROMPTS))
        assert tokens_of(generate(session_decoder(graph), PROMPTS, settings), len(PROMPTS)) == plain


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 512])
def test_prefill_in_chunks_equals_prefill_at_once(model, chunk):
    whole = tokens_of(generate(model(), [LONG], Generation(max_new_tokens=8)))
    decoder = model()
    assert tokens_of(generate(decoder, [LONG], Generation(max_new_tokens=8, prefill_chunk=chunk))) == whole
    if isinstance(decoder, TinyLM):
        sizes = [columns for _, columns in decoder.calls]
        assert sum(sizes) == len(LONG) + 7
        assert max(sizes) <= chunk


def test_a_seed_repeats_a_batch_and_another_does_not(model):
    def drawn(seed):
        sampling = Sampling(temperature=1.5, seed=seed)
        return tokens_of(generate(model(), PROMPTS, Generation(max_new_tokens=10, sampling=sampling)), 4)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_rows_that_ended_are_not_heard_of_again():
    end = 3
    scripts = [[1, end, 9, 9], [1, 2, 4, 5], [end, 9]]
    decoder = Scripted(PROMPTS[:3], scripts)
    settings = Generation(max_new_tokens=4, eos=(end,), pad=6)
    events = list(generate(decoder, PROMPTS[:3], settings))
    assert tokens_of(events, 3) == [[1, end], [1, 2, 4, 5], [end]]
    assert [(event.row, event.finish) for event in events if event.finish] == [(2, "eos"), (0, "eos"), (1, "length")]
    # What is fed to ended rows is padding, and nothing is fed once all have ended.
    assert decoder.fed[2][-2:] == [6, 6]
    assert len(decoder.fed[1]) == len(PROMPTS[1]) + 3


def said(codec, script, settings, rows=1):
    prompts = PROMPTS[:rows]
    return list(generate(Scripted(prompts, script), prompts, settings, codec))


def test_text_ends_before_a_stop_string_that_lies_across_tokens(codec):
    words = byte_tokenizer().encode("he said world, STOP now").ids
    settings = Generation(max_new_tokens=50, stop=("STOP", "never"))
    events = said(codec, [words], settings)
    assert "".join(event.text for event in events) == "he said world, "
    assert events[-1].finish == "stop"
    # Nothing is generated beyond the token that completes it.
    assert len(events) == len(byte_tokenizer().encode("he said world, STOP").ids)
    assert all("S" not in event.text for event in events)


def test_text_that_only_began_like_a_stop_string_comes_out_in_the_end(codec):
    words = byte_tokenizer().encode("a ST").ids
    for settings, finish in (
        (Generation(max_new_tokens=len(words), stop=("STOP",)), "length"),
        (Generation(stop=("STOP",), eos=codec.eos), "eos"),
    ):
        events = said(codec, [[*words, codec.eos[0]]], settings)
        assert "".join(event.text for event in events) == "a ST"
        assert events[-1].finish == finish


def test_streamed_characters_are_whole_and_half_ones_come_at_the_end(codec):
    words = byte_tokenizer().encode("x 中😀").ids
    events = said(codec, [words], Generation(max_new_tokens=len(words)))
    assert [event.text for event in events if event.text] == ["x", " ", "中", "😀"]
    cut = said(codec, [words], Generation(max_new_tokens=len(words) - 1))
    assert "".join(event.text for event in cut) == "x 中\ufffd"


def test_a_full_cache_ends_with_length(model):
    decoder = model(limit=len(LONG) + 3)
    events = list(generate(decoder, [LONG], Generation(max_new_tokens=50)))
    assert len(events) == 4
    assert events[-1].finish == "length"
    free = tokens_of(generate(model(), [LONG], Generation(max_new_tokens=4)))
    assert tokens_of(events) == free
    assert len(list(generate(model(limit=len(LONG)), [LONG], Generation(max_new_tokens=50)))) == 1


def test_what_does_not_fit_is_refused_before_it_runs(model):
    with pytest.raises(UsageError, match="prompt 2 has 17 tokens, the cache holds 16") as caught:
        next(generate(model(limit=16), PROMPTS, Generation()))
    assert "--context 18" in caught.value.hint
    with pytest.raises(UsageError, match="4 prompts"):
        next(generate(model(rows=3), PROMPTS, Generation()))
    with pytest.raises(UsageError, match="prompt 1 has no tokens"):
        next(generate(model(), [np.zeros(0, np.int64)], Generation()))
    with pytest.raises(UsageError, match="0 prompts"):
        next(generate(model(), [], Generation()))
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        next(generate(model(), PROMPTS, Generation(stop=("a",))))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, "max new tokens 0"),
        ({"prefill_chunk": 0}, "prefill chunk 0"),
        ({"stop": ("",)}, "empty"),
    ],
)
def test_settings_outside_their_range_are_refused(values, words):
    with pytest.raises(UsageError, match=words):
        Generation(**values)


def test_nan_logits_name_the_row_and_the_position():
    arrays = weights()
    arrays["places"][20] = np.nan
    with pytest.raises(StageError, match=r"row 1 at position 21"):
        list(generate(TinyLM(arrays), PROMPTS, Generation(max_new_tokens=30)))


# The decoder over a session


class LastOnly:
    """The graph's session as it is with last logits: only those after each row's last real token."""

    ran_on = "onnxruntime"

    def __init__(self, graph):
        self.session = portable_session(graph)

    def run(self, inputs):
        outputs = self.session.run(inputs)
        size = inputs["input_ids"].shape[1]
        last = inputs["attention_mask"][:, -size:].sum(axis=1) - 1
        return {**outputs, "logits": outputs["logits"][np.arange(len(last)), last][:, None]}

    def close(self):
        self.session.close()


@pytest.mark.parametrize("last_logits", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
def test_every_ragged_forward_continues_each_row(graph, last_logits, padding):
    """Ragged appends at any time, as a table of rows and their tokens; the plain model is the reference."""
    session = LastOnly(graph) if last_logits else portable_session(graph)
    spec = tiny_spec(last_logits=last_logits)
    plain, cached = TinyLM(), SessionDecoder(session, tiny_inputs(), spec, limit=CONTEXT, rows=3)
    steps = [(5, 2, 7), (1, 1, 1), (3, 1, 2), (1, 1, 1), (4, 4, 4), (2, 3, 2)]
    for decoder in (plain, cached):
        decoder.start(3)
    for lengths in map(np.array, steps):
        tokens = RANDOM.integers(0, VOCABULARY, (3, lengths.max() + padding))
        every = plain.forward(tokens[:, : lengths.max()], lengths)
        np.testing.assert_allclose(cached.forward(tokens, lengths), every, rtol=2e-4, atol=2e-4)


def test_every_answers_all_positions(graph):
    cached = session_decoder(graph)
    plain = TinyLM(rows=2)
    for decoder in (plain, cached):
        decoder.start(2)
    tokens = RANDOM.integers(0, VOCABULARY, (2, 6))
    lengths = np.array([6, 6])
    expected = plain.forward(tokens, lengths, every=True)
    assert expected.shape == (2, 6, VOCABULARY)
    np.testing.assert_allclose(cached.forward(tokens, lengths, every=True), expected, rtol=2e-4, atol=2e-4)


def test_going_back_forgets(model):
    decoder = model()
    tokens, other = RANDOM.integers(0, VOCABULARY, (2, 2, 5))
    lengths = np.array([5, 5])
    decoder.start(2)
    decoder.forward(tokens, lengths)
    decoder.forward(other, lengths)
    decoder.rewind(5)
    again = decoder.forward(tokens, lengths)
    decoder.start(2)
    decoder.forward(tokens, lengths)
    np.testing.assert_allclose(decoder.forward(tokens, lengths), again, rtol=1e-5, atol=1e-5)


def test_the_session_decoder_refuses_what_it_cannot_do(graph):
    decoder = session_decoder(graph, limit=8, rows=2, last_logits=True)
    decoder.start(2)
    one, ones = np.ones((2, 1), np.int64), np.ones(2, np.int64)
    cases = [
        (lambda: decoder.forward(one, ones, every=True), "last position's logits only"),
        (lambda: decoder.forward(one, np.array([1, 0])), r"lengths \[1, 0\]"),
        (lambda: decoder.forward(one, np.array([2, 1])), r"lengths \[2, 1\]"),
        (lambda: decoder.forward(one[:1], ones), r"tokens \[1, 1\]"),
        (lambda: decoder.forward(one * VOCABULARY, ones), f"token {VOCABULARY} is not in the vocabulary"),
        (lambda: decoder.forward(-one, ones), "token -1"),
        (lambda: decoder.forward(np.ones((2, 9), np.int64), 9 * ones), "9 positions, the cache holds 8"),
        (lambda: decoder.start(3), "3 rows"),
        (lambda: decoder.rewind(1), "cannot go back to 1"),
        (lambda: session_decoder(graph, limit=0), "limit 0"),
        (lambda: session_decoder(graph, rows=0), "rows 0"),
    ]
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()
    decoder.forward(np.ones((2, 3), np.int64), np.array([3, 2]))
    with pytest.raises(UsageError, match=r"cannot go back to 1 positions from \[3, 2\]"):
        decoder.rewind(1)
    decoder.close()
    spec = tiny_spec()
    with pytest.raises(StageError, match="0 cache inputs for 1 layers"):
        SessionDecoder(portable_session(graph), tiny_inputs()[:3], spec, limit=8, rows=1)


# Speculation


def drafts(arrays):
    """The model itself, one slightly off, one of another seed, and one that is always wrong."""
    near = {name: array + np.float32(0.05) * RANDOM.standard_normal(array.shape) for name, array in arrays.items()}
    return {"itself": arrays, "near": near, "other": weights(9), "opposite": {**arrays, "table": -arrays["table"]}}


@pytest.mark.parametrize("name", ["itself", "near", "other", "opposite"])
@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_a_draft_never_changes_the_text(model, name, ahead):
    arrays = drafts(weights())[name]
    for prompt, penalty in itertools.product((PROMPTS[0], LONG), (1.0, 1.4)):
        settings = Generation(max_new_tokens=25, sampling=Sampling(repetition_penalty=penalty))
        expected = list(generate(model(), [prompt], settings))
        counts = Acceptance()
        found = list(speculate(model(), TinyLM(arrays), prompt, settings, ahead=ahead, counts=counts))
        assert found == expected
        assert counts.accepted <= counts.drafted
        if name == "itself" and penalty == 1:
            assert counts.rate == 1
            assert counts.passes == -(-24 // (ahead + 1))
        if name == "opposite":
            assert counts.rate < 0.2


def test_a_draft_never_changes_how_it_ends(model, codec):
    greedy = list(generate(model(), [LONG], Generation(max_new_tokens=20)))
    for settings in (
        Generation(max_new_tokens=20, eos=(greedy[9].token,)),
        Generation(max_new_tokens=7),
        Generation(max_new_tokens=1),
    ):
        expected = list(generate(model(), [LONG], settings, codec))
        assert list(speculate(model(), TinyLM(), LONG, settings, codec, ahead=5)) == expected
    text = "".join(event.text for event in generate(model(), [LONG], Generation(max_new_tokens=20), codec))
    stop = Generation(max_new_tokens=20, stop=(text[6:8],))
    assert list(speculate(model(), TinyLM(), LONG, stop, codec)) == list(generate(model(), [LONG], stop, codec))


@pytest.mark.parametrize(("limit", "reach"), [(47, 60), (60, 45), (44, 44), (40, 40)])
def test_a_draft_respects_both_caches(model, limit, reach):
    settings = Generation(max_new_tokens=15)
    expected = list(generate(model(limit=limit), [LONG], settings))
    assert list(speculate(model(limit=limit), TinyLM(limit=reach), LONG, settings, ahead=4)) == expected


def test_a_draft_that_cannot_help_is_refused(model):
    with pytest.raises(UsageError, match="greedy choice only"):
        next(speculate(model(), TinyLM(), LONG, Generation(sampling=DRAWING)))
    with pytest.raises(UsageError, match=f"50 tokens in its vocabulary, the model {VOCABULARY}"):
        next(speculate(model(), TinyLM(weights(0, 50)), LONG % 50, Generation()))
    with pytest.raises(UsageError, match="cache holds 39"):
        next(speculate(model(), TinyLM(limit=39), LONG, Generation()))
    with pytest.raises(UsageError, match="0 drafted tokens"):
        next(speculate(model(), TinyLM(), LONG, Generation(), ahead=0))
