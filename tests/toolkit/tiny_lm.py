"""Language models small enough to test generation with, and tokenizers to go with them.

`TinyLM` is a one-layer attention model with ALiBi in numpy that recomputes everything from the tokens each time: no
cache, so nothing of a cache can be wrong in it. `tiny_graph` is the same model as a canonical ONNX graph with a cache.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtimes import portable_session
from toolkit.bundle.write import Contents, write_bundle
from toolkit.drift.report import DriftReport, OutputDrift, StageDrift
from toolkit.errors import UsageError
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.target import Target
from toolkit.types import DecoderSpec, Dim, Engine, Gate, LoweredGraph, ModelSpec, Step, TensorSpec

SIZE, HEADS, CONTEXT, SLOPE = 8, 1, 96, 0.5
SPECIAL = ("<|end|>", "<|user|>", "<|system|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer():
    """Byte-level BPE: every byte is a token, a few words are, and the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "w"), ("o", "r"), ("Ġw", "or"), ("l", "d"), ("Ġwor", "ld"), ("h", "e")]
    vocabulary = [*letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def llama_tokenizer():
    """As SentencePiece has it: a leading space is dropped in decoding, unknown characters fall back to bytes."""
    words = ["▁world", "▁a", "world", "hello", "▁hello", "é"]
    vocabulary = {token: index for index, token in enumerate(["<unk>", *words, *(f"<0x{n:02X}>" for n in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


VOCABULARY = byte_tokenizer().get_vocab_size()


def weights(seed=0, vocabulary=VOCABULARY):
    random = np.random.default_rng(seed)
    shapes = {"table": (vocabulary, SIZE), "places": (CONTEXT, SIZE), **dict.fromkeys("qkvo", (SIZE, SIZE))}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class RowsOfTokens:
    """A `Decoder` that keeps tokens instead of a cache; subclasses answer logits [n, vocabulary] of one row."""

    ran_on = "numpy"

    def __init__(self, *, limit=CONTEXT, rows=4):
        self.limit, self.rows = limit, rows
        self.fed: list[list[int]] = []
        self.closed = False
        self.calls: list[tuple[int, ...]] = []

    def start(self, rows):
        self.fed = [[] for _ in range(rows)]

    def forward(self, tokens, lengths, *, every=False):
        self.calls.append(tokens.shape)
        answers = []
        for held, new, length in zip(self.fed, tokens, lengths, strict=True):
            held.extend(new[:length].tolist())
            if len(held) > self.limit:
                raise UsageError("past the limit")
            answers.append(self.logits(held)[-tokens.shape[1] if every else -1 :][: tokens.shape[1] if every else 1])
        return np.stack(answers) if every else np.concatenate(answers)

    def rewind(self, length):
        if len({len(held) for held in self.fed}) != 1:
            raise UsageError("rows of several lengths")
        self.fed = [held[:length] for held in self.fed]

    def close(self):
        self.closed = True


class TinyLM(RowsOfTokens):
    """One attention layer with ALiBi, positions added to the embedding, tied head."""

    def __init__(self, arrays=None, **settings):
        super().__init__(**settings)
        self.arrays = arrays or weights()

    def logits(self, tokens):
        w = self.arrays
        x = w["table"][tokens] + w["places"][: len(tokens)]
        q, k, v = (x @ w[name] for name in "qkv")
        steps = np.arange(len(tokens))
        distance = steps[:, None] - steps
        scores = np.where(distance >= 0, q @ k.T / np.sqrt(SIZE) - SLOPE * distance, -np.inf)
        share = np.exp(scores - scores.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        return ((x + share @ v @ w["o"]) @ w["table"].T).astype(np.float32)


class Scripted(RowsOfTokens):
    """Says its script's tokens one after another, whatever the prompts; then an endless row of the last one."""

    def __init__(self, prompts, scripts, vocabulary=VOCABULARY, **settings):
        super().__init__(**settings)
        self.prompts, self.scripts, self.vocabulary = prompts, scripts, vocabulary

    def forward(self, tokens, lengths, *, every=False):
        answers = super().forward(tokens, lengths, every=every)
        said = [len(held) - len(prompt) for held, prompt in zip(self.fed, self.prompts, strict=True)]
        for row, (step, script) in enumerate(zip(said, self.scripts, strict=True)):
            if not every and step >= 0:
                answers[row, script[min(step, len(script) - 1)]] = 1
        return answers

    def logits(self, tokens):
        return np.zeros((len(tokens), self.vocabulary), np.float32)


def tiny_inputs():
    past = ("batch", HEADS, "past_sequence", SIZE)
    return (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
        TensorSpec("position_ids", "int64", ("batch", "sequence")),
        TensorSpec("past_key_values.0.key", "float32", past),
        TensorSpec("past_key_values.0.value", "float32", past),
    )


def tiny_spec(vocabulary=VOCABULARY, **settings):
    return DecoderSpec(layers=1, vocabulary=vocabulary, context=CONTEXT, **settings)


def tiny_outputs(vocabulary=VOCABULARY):
    present = ("batch", HEADS, "total_sequence", SIZE)
    return (
        TensorSpec("logits", "float32", ("batch", "sequence", vocabulary)),
        TensorSpec("present.0.key", "float32", present),
        TensorSpec("present.0.value", "float32", present),
    )


def tiny_graph(path, arrays=None):
    """Write `TinyLM` as a canonical graph: ALiBi counts columns, as a fused attention node does."""
    arrays = arrays or weights()
    vocabulary = len(arrays["table"])
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["words"]),
        node("Gather", ["places", "position_ids"], ["where"]),
        node("Add", ["words", "where"], ["x"]),
        *(node("MatMul", ["x", name], [f"{name}_3d"]) for name in "qkv"),
        *(node("Unsqueeze", [f"{name}_3d", "one"], [f"{name}_4d"]) for name in "qkv"),
        node("Concat", ["past_key_values.0.key", "k_4d"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "v_4d"], ["present.0.value"], axis=2),
        node("Transpose", ["present.0.key"], ["turned"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q_4d", "turned"], ["products"]),
        node("Mul", ["products", "scale"], ["scores"]),
        node("Shape", ["attention_mask"], ["total_1d"], start=1, end=2),
        node("Shape", ["input_ids"], ["new_1d"], start=1, end=2),
        node("Squeeze", ["total_1d"], ["total"]),
        node("Squeeze", ["new_1d"], ["new"]),
        node("Sub", ["total", "new"], ["past"]),
        node("Range", ["past", "total", "step"], ["rows"]),
        node("Range", ["nil", "total", "step"], ["columns"]),
        node("Unsqueeze", ["rows", "one"], ["rows_2d"]),
        node("Sub", ["rows_2d", "columns"], ["distance"]),
        node("GreaterOrEqual", ["distance", "nil"], ["causal"]),
        node("Unsqueeze", ["attention_mask", "axes"], ["mask_4d"]),
        node("Cast", ["mask_4d"], ["real"], to=TensorProto.BOOL),
        node("And", ["causal", "real"], ["allowed"]),
        node("Cast", ["distance"], ["far"], to=TensorProto.FLOAT),
        node("Mul", ["far", "slope"], ["bias"]),
        node("Sub", ["scores", "bias"], ["biased"]),
        node("Where", ["allowed", "biased", "least"], ["masked"]),
        node("Softmax", ["masked"], ["shares"]),
        node("MatMul", ["shares", "present.0.value"], ["mixed_4d"]),
        node("Squeeze", ["mixed_4d", "one"], ["mixed"]),
        node("MatMul", ["mixed", "o"], ["attended"]),
        node("Add", ["x", "attended"], ["hidden"]),
        node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    constants = {
        **arrays, "head": arrays["table"].T.copy(), "scale": np.float32(SIZE**-0.5), "slope": np.float32(SLOPE),
        "least": np.float32(-1e9), "one": np.array([1]), "axes": np.array([1, 2]), "nil": np.array(0),
        "step": np.array(1),
    }  # fmt: skip
    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    values = [
        [helper.make_tensor_value_info(item.name, kinds[item.dtype], item.shape) for item in items]
        for items in (tiny_inputs(), tiny_outputs(vocabulary))
    ]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny-lm", *values, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def save_tokenizer(folder, tokenizer=None, **config):
    """The files that a bundle keeps of a tokenizer, with a chat template unless `config` has another."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_tokenizer()).save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": "<|end|>"}, "chat_template": TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def language_bundle(
    folder, *, arrays=None, assets=True, tokenizer=None, config=None, runtime="ort-cpu", family="auto", **spec
):
    """A bundle of `TinyLM`; whoever opens it gives it a runtime, see `SessionRuntime`."""
    source = folder.with_name(f"{folder.name}-source")
    save_tokenizer(source / "assets", tokenizer, **(config or {}))
    path = tiny_graph(source / "model.onnx", arrays)
    vocabulary = len((arrays or weights())["table"])
    model = ModelSpec(
        name="tiny-lm", family=family, kind="decoder", task="text-generation", source="none", architecture="TinyLM",
        inputs=tiny_inputs(), outputs=tiny_outputs(vocabulary),
        dims={"batch": Dim(1, 1, 4), "sequence": Dim(1, 8, CONTEXT), "total_sequence": Dim(1, 16, CONTEXT),
              "past_sequence": Dim(0, 8, CONTEXT)},
        decoder=tiny_spec(vocabulary, **spec),
    )  # fmt: skip
    lowered = LoweredGraph(path, model, (Step("lower", "kept", 1),), scheme="fp32", runtime=runtime)
    same = OutputDrift(name="logits", sqnr_db=120.0, cosine=1.0, relative_l2=0.0, max_abs=0.0)
    stage = StageDrift(stage="build", ran_on="numpy", outputs=(same,), gate=Gate())
    golden = {
        "input_ids": np.arange(12).reshape(2, 6), "attention_mask": np.ones((2, 6), np.int64),
        "position_ids": np.tile(np.arange(6), (2, 1)),
        **{item.name: np.zeros((2, HEADS, 0, SIZE), np.float32) for item in tiny_inputs()[3:]},
    }  # fmt: skip
    session = portable_session(path)
    contents = Contents(
        spec=model, target=Target(runtime, "fp32"),
        engine=Engine(lowered, "executed", "test builder 1", (Path("model.onnx"),)),
        report=DriftReport.of("numpy", [stage]), golden=[golden], golden_reference=[session.run(golden)],
        assets=sorted((source / "assets").iterdir()) if assets else (),
    )  # fmt: skip
    session.close()
    folder.mkdir(parents=True)
    write_bundle(folder, contents, command="toolkit export --model tiny-lm")
    return folder


class SessionRuntime:
    """A runtime whose decoder is the graph in ONNX Runtime, cache going out and in."""

    def decoder(self, folder, engine, spec, *, limit, rows):
        return SessionDecoder(portable_session(folder / engine["graph"]), tiny_inputs(), spec, limit=limit, rows=rows)
