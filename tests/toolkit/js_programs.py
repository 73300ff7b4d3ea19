"""Written JavaScript programs with their node_modules, small bundles to give them, and ways to spoil a bundle."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from tiny_bundles import WORDS, image_bundle, text_bundle
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from toolkit.bundle.processing import write_processing
from toolkit.cli import main
from toolkit.hashing import file_sha256
from toolkit.processing import EXTENSIONS, Processing

NODE = shutil.which("node")
TEXTS = (["a cat sat on the mat"], ["the dog", "", "a cat and a mat"], ["on the mat " * 9])
LENGTH = 16


def node_modules(folder, *parts):
    """Link what scripts/fetch_native.py brought of these parts into the program's folder; skips where it did not."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "fetch_native.py"
    spec = importlib.util.spec_from_file_location("fetch_native", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for part in parts:
        source = module.default_folder() / part / "node_modules"
        if not source.is_dir():
            pytest.skip(f"{part} is not here: run python scripts/fetch_native.py {part}")
        for package in (each for each in source.iterdir() if not each.name.startswith(".")):
            target = folder / "node_modules" / package.name
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                target.symlink_to(package)


def written(language, bundles, folder):
    """The program for these bundles, as `toolkit bundle` writes it."""
    given = [str(bundle) for bundle in bundles]
    result = CliRunner().invoke(main, ["bundle", *given, "--lang", language, "--output", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def run_node(program, *arguments):
    """A finished `node` process, its output as text."""
    command = [NODE, *map(str, arguments)]
    return subprocess.run(command, cwd=program, capture_output=True, text=True, timeout=120, check=False)


def values_of(program, module, folder):
    """What a module beside this file prints as JSON of the folder, run in the program's."""
    shutil.copy(Path(__file__).parent / module, program)
    done = run_node(program, module, folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def signed(bundle, change=lambda manifest: None):
    """The manifest with that change, and with all files as they are now: what somebody forges."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    there = sorted(each for each in bundle.rglob("*") if each.is_file() and each != path)
    manifest["files"] = {
        each.relative_to(bundle).as_posix(): {"sha256": file_sha256(each), "bytes": each.stat().st_size}
        for each in there
    }
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def with_processing(bundle, place, processing):
    """The bundle with that graph before or after its model."""
    entry = write_processing(bundle, place, processing)
    signed(bundle, lambda manifest: manifest.update({place: entry.model_dump(mode="json")}))
    return bundle


def pixels_bundle(folder, *, bound=1e-6, exact=True):
    """The tiny classifier with a graph from pixels of 8x8 grey pictures, [8, 8, 1], and one from logits to shares."""
    bundle = image_bundle(folder)
    pictures = [np.random.default_rng(seed).integers(0, 256, (8, 8, 1), dtype=np.uint8) for seed in (5, 6)]
    samples = tuple(({"pixels": one}, {"pixel_values": _normalised(one)}) for one in pictures)
    before = Processing(_pixels_graph(), samples, exact=exact, bound=bound, reason="" if exact else "it is rounded")
    with_processing(bundle, "preprocess", before)
    logits = np.array([[1.0, 2.0] + [0.0] * 8], np.float32)
    shares = np.exp(logits) / np.exp(logits).sum()
    after = Processing(_shares_graph(), (({"logits": logits}, {"shares": shares}),), exact=True, bound=1e-6)
    return with_processing(bundle, "postprocess", after)


def words_bundle(folder):
    """The averaging text encoder with a tokenizer.json, and what that tokenizer makes of some texts."""
    bundle = text_bundle(folder)
    tokenizer = word_tokenizer()
    tokenizer.save(str(bundle / "assets" / "tokenizer.json"))
    names = ("input_ids", "attention_mask")
    samples = tuple(({"text": np.array(texts, object)}, tokens(tokenizer, texts)) for texts in TEXTS)
    graph = _typed("text", names)
    return with_processing(bundle, "preprocess", Processing(graph, samples, exact=True, needs=(EXTENSIONS,)))


def word_tokenizer():
    """Truncates and pads as the bundle's `dims` say."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(list(WORDS[:5]))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def tokens(tokenizer, texts):
    encodings = tokenizer.encode_batch(texts)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask"}
    return {name: np.array([getattr(one, column) for one in encodings], np.int64) for name, column in columns.items()}


def _normalised(picture):
    return (picture.astype(np.float32) / 255).transpose(2, 0, 1)[None]


def _pixels_graph():
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["numbers", "most"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["planes", "first"], ["pixel_values"]),
    ]
    constants = [
        helper.make_tensor("most", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("first", TensorProto.INT64, [1], [0]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["height", "width", 1])
    values = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 1, "height", "width"])
    return _model(helper.make_graph(nodes, "pixels", [pixels], [values], constants))


def _shares_graph():
    logits, shares = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 10]) for name in ("logits", "shares")
    )
    return _model(helper.make_graph([helper.make_node("Softmax", ["logits"], ["shares"])], "after", [logits], [shares]))


def _typed(text, names):
    """A graph by its inputs and outputs alone: no program in JavaScript opens one that needs the extensions."""
    given = helper.make_tensor_value_info(text, TensorProto.STRING, ["batch"])
    made = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    return _model(helper.make_graph([], "text", [given], made))


def _model(graph):
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
