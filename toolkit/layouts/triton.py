"""A model repository for NVIDIA's Triton Inference Server: ONNX Runtime graphs, TensorRT engines, ensembles."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from toolkit.bundle.manifest import Manifest, ProcessingEntry
from toolkit.bundle.read import Bundle
from toolkit.compiled import built_engines
from toolkit.drift.measure import task_output
from toolkit.errors import UnsupportedError, UsageError
from toolkit.hashing import data_path
from toolkit.layouts._triton_config import Word, batch_limit, entries, tensors, text_of

__all__ = ["LAYOUT", "Triton"]

Fields = dict[str, Any]
CONFIG = "config.pbtxt"
LABELS = "labels.txt"
_VERSION = "1"
_PLAN = ".plan"
_TENSORRT = "tensorrt"
_ACCELERATED = {"TensorrtExecutionProvider": "tensorrt", "CUDAExecutionProvider": "cuda"}
_OWN = ("device_id", "trt_engine_hw_compatible")
"""Options of ONNX Runtime's providers that are Triton's own business, or that its backend does not pass on."""
_MODES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}


@dataclass(frozen=True, slots=True)
class _Model:
    """One folder of the repository: its configuration, the files of its version by their names, and its labels."""

    name: str
    fields: Fields
    files: Mapping[str, Path]
    labels: Sequence[str] = ()

    @property
    def batched(self) -> bool:
        """Whether Triton adds the batch axis itself."""
        return bool(self.fields["max_batch_size"])


class Triton:
    """The layout `triton`: `<model>/config.pbtxt` and `<model>/1/…` for each bundle and for what stands around it.

    What has no model of its own (a tokenizer, which needs operators that Triton's build lacks) is told, not left out
    in silence.
    """

    def check(self, bundle: Bundle) -> None:
        """Raise UnsupportedError, with what to do instead, for what Triton's backends do not load."""
        _engine(bundle)

    def write(self, bundles: Sequence[Bundle], folder: Path) -> str:
        """Write the repository; answer how to start a server on it and what is missing from it.

        Raises UsageError for two bundles of one model and target.
        """
        names: set[str] = set()
        said: list[str] = []
        for bundle in bundles:
            models, missing = _models(bundle)
            said += missing
            for model in models:
                if model.name in names:
                    raise UsageError(
                        f"two bundles are the model {model.name}", hint="Lay them out in two repositories."
                    )
                names.add(model.name)
                _place(model, folder / model.name)
        return "\n".join([*said, *_start(bundles)])


def _engine(bundle: Bundle) -> _Model:
    """The model that runs the bundle's engine."""
    manifest = bundle.manifest
    runtime = manifest.target.runtime
    fill = _BACKENDS.get(runtime)
    if fill is None:
        why = _NOT_SERVED.get(runtime, f"Triton has no backend for engines of {runtime}")
        raise UnsupportedError(f"{why} ({bundle.folder})", hint=f"It serves bundles of: {', '.join(_BACKENDS)}.")
    if manifest.engine.inputs:
        raise UnsupportedError(
            f"the cache of {bundle.folder} is one buffer, read and written in place, which Triton cannot bind",
            hint="Export with --kv-cache concat: then each request carries the past and is answered the presents.",
        )
    specs = (*manifest.inputs, *manifest.outputs)
    limit = batch_limit(specs, manifest.dims)
    own, files = fill(bundle)
    outputs = tensors(manifest.outputs, batched=bool(limit))
    labels = _labels(manifest)
    if labels:
        named = next(item for item in outputs if item["name"] == task_output(manifest.spec()))
        named["label_filename"] = LABELS
    fields = {
        "name": _name(manifest),
        **own,
        "max_batch_size": limit,
        "input": tensors(manifest.inputs, batched=bool(limit)),
        "output": outputs,
        "version_policy": {"latest": {"num_versions": 1}},
        "dynamic_batching": _batching(manifest, limit) if limit > 1 else None,
    }
    return _Model(_name(manifest), fields, files, labels)


def _onnx(bundle: Bundle, *, gpu: bool) -> tuple[Fields, dict[str, Path]]:
    """The graph, its weights beside it, on Triton's ONNX Runtime."""
    graph = bundle.path(bundle.manifest.graph)
    files = {path.name: path for path in (graph, data_path(graph)) if path.is_file()}
    fields: Fields = {
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "default_model_filename": graph.name,
        "instance_group": [{"kind": Word("KIND_GPU" if gpu else "KIND_CPU"), "count": 1}],
    }
    if gpu:
        accelerators = {"gpu_execution_accelerator": _accelerators(bundle)}
        fields["optimization"] = {"execution_accelerators": accelerators}
    else:
        # 0 is a thread a core: one instance then has the whole machine.
        fields["parameters"] = entries({"intra_op_thread_count": {"string_value": "0"}})
    return fields, files


def _accelerators(bundle: Bundle) -> list[Fields]:
    """The providers with the options that the bundle was made for: its precision, its profile of shapes."""
    details = bundle.manifest.engine.details
    given: Any = details.get("provider_options", {})
    found = []
    for provider, name in _ACCELERATED.items():
        options = {key: value for key, value in given.get(provider, {}).items() if key not in _OWN}
        if not options:
            continue
        mode = {"precision_mode": _mode(bundle)} if name == _TENSORRT else {}
        found.append({"name": name, "parameters": entries({**mode, **{key: _flag(options[key]) for key in options}})})
    return found


def _mode(bundle: Bundle) -> str:
    scheme = bundle.manifest.target.scheme
    if scheme not in _MODES:
        raise UnsupportedError(
            f"Triton's ONNX Runtime backend does not let TensorRT build in {scheme} ({bundle.folder})",
            hint=f"Export ort-trt with one of: {', '.join(_MODES)}; or for trt, on the server's machine.",
        )
    return _MODES[scheme]


def _flag(value: str) -> str:
    """ONNX Runtime spells a boolean `True`, the backend's parameters `1`."""
    return {"True": "1", "False": "0"}.get(value, value)


def _plans(bundle: Bundle) -> tuple[Fields, dict[str, Path]]:
    """The engine files of TensorRT, chosen by the compute capability of the server's GPU."""
    engine = bundle.manifest.engine
    library = engine.details.get("library") or engine.builder.partition(" ")[0]
    built = [one for one in built_engines(engine.details) if one.file.endswith(_PLAN) and one.file in engine.files]
    if library != _TENSORRT or not built:
        what = f"its engines are of {library}" if built else "there is only its graph"
        raise UnsupportedError(
            f"Triton's TensorRT backend loads engines of TensorRT itself; {bundle.folder}: {what}",
            hint="Export for trt where the server's GPU and version of TensorRT are, or for ort-trt anywhere.",
        )
    profiles = [str(number) for number in range(built[0].profiles)]
    fields: Fields = {
        "platform": "tensorrt_plan",
        "backend": "tensorrt",
        "default_model_filename": built[0].file,
        "cc_model_filenames": entries({_capability(one.architecture): one.file for one in built}),
        "instance_group": [
            {"kind": Word("KIND_GPU"), "count": 1, "profile": profiles if len(profiles) > 1 else []},
        ],
    }
    return fields, {one.file: bundle.path(one.file) for one in built}


_BACKENDS: Mapping[str, Callable[[Bundle], tuple[Fields, dict[str, Path]]]] = {
    "ort-cpu": partial(_onnx, gpu=False),
    "ort-cuda": partial(_onnx, gpu=True),
    "ort-trt": partial(_onnx, gpu=True),
    "trt": _plans,
}

_NOT_SERVED = {
    "openvino": "Triton's OpenVINO backend is not for general use, as its authors say, and is not told to keep fp32",
    "trt-rtx": "Triton's TensorRT backend loads engines of TensorRT itself, not of TensorRT-RTX",
}


def _capability(architecture: str) -> str:
    """`8.9` for sm89, `12.0` for sm120."""
    digits = architecture.removeprefix("sm")
    return f"{digits[:-1]}.{digits[-1]}"


def _name(manifest: Manifest, part: str = "") -> str:
    """What clients call it: letters, digits, dots and hyphens, for it stands in URLs."""
    target = f"{manifest.target.runtime}-{manifest.target.scheme}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, [manifest.model.name, target, part])))


def _labels(manifest: Manifest) -> tuple[str, ...]:
    """Class names, one a line; none where one of them would not fit a line."""
    fits = all(label and "\n" not in label for label in manifest.model.labels)
    whole = manifest.model.task in ("image-classification", "text-classification")
    return manifest.model.labels if fits and whole else ()


def _batching(manifest: Manifest, limit: int) -> Fields:
    """Requests that wait together run together; the size that engines are tuned for is preferred."""
    tuned = manifest.dims[str(manifest.inputs[0].shape[0])].opt
    return {"preferred_batch_size": [tuned] if 1 < tuned <= limit else []}


def _models(bundle: Bundle) -> tuple[list[_Model], list[str]]:
    """The engine, the graphs around it that Triton can run as they are, and one ensemble of them all."""
    engine = _engine(bundle)
    manifest = bundle.manifest
    around, missing = {}, []
    for place in ("preprocess", "postprocess"):
        entry: ProcessingEntry | None = getattr(manifest, place)
        if entry is None or entry.graph is None:
            continue
        if entry.needs:
            needs = ", ".join(entry.needs)
            missing.append(f"{engine.name}: no model for {entry.graph}, which needs {needs}: do that in the client")
            continue
        around[place] = _processing(bundle, place, entry, entry.graph)
    before, after = around.get("preprocess"), around.get("postprocess")
    chain = [model for model in (before, engine, after) if model is not None]
    whole = [_ensemble(bundle, chain)] if len(chain) > 1 and _joins(chain) else []
    return [*chain, *whole], missing


def _processing(bundle: Bundle, place: str, entry: ProcessingEntry, graph: str) -> _Model:
    name, path = _name(bundle.manifest, place), bundle.path(graph)
    limit = batch_limit((*entry.inputs, *entry.outputs), bundle.manifest.dims)
    fields = {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": limit,
        "input": tensors(entry.inputs, batched=bool(limit)),
        "output": tensors(entry.outputs, batched=bool(limit)),
        "version_policy": {"latest": {"num_versions": 1}},
        "default_model_filename": path.name,
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
    }
    return _Model(name, fields, {path.name: path})


def _joins(chain: Sequence[_Model]) -> bool:
    """Whether each model takes something that the one before it answers, by the same name; clients give the rest."""
    return all(_names(after, "input") & _names(before, "output") for before, after in pairwise(chain))


def _names(model: _Model, side: str) -> set[str]:
    return {item["name"] for item in model.fields[side]}


def _ensemble(bundle: Bundle, chain: Sequence[_Model]) -> _Model:
    """All of them as one model; it has a batch axis of its own only where each of them has."""
    batched = all(model.batched for model in chain)
    steps = [
        {
            "model_name": model.name,
            "model_version": -1,
            "input_map": entries({name: name for name in sorted(_names(model, "input"))}),
            "output_map": entries({name: name for name in sorted(_names(model, "output"))}),
        }
        for model in chain
    ]
    name = _name(bundle.manifest, "pipeline")
    fields = {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": min(model.fields["max_batch_size"] for model in chain) if batched else 0,
        "input": _given(chain, batched=batched),
        "output": _outer(chain[-1], "output", batched=batched),
        "ensemble_scheduling": {"step": steps},
    }
    return _Model(name, fields, {})


def _given(chain: Sequence[_Model], *, batched: bool) -> list[Fields]:
    """What no member answers for one behind it, as the `k` of a classifier's answers: each once."""
    found: list[Fields] = []
    known: set[str] = set()
    for model in chain:
        found += [item for item in _outer(model, "input", batched=batched) if item["name"] not in known]
        known |= _names(model, "input") | _names(model, "output")
    return found


def _outer(model: _Model, side: str, *, batched: bool) -> list[Fields]:
    """A member's tensors as the ensemble has them: with the batch axis written out where only the member has one."""
    written = [{key: item[key] for key in ("name", "data_type", "dims")} for item in model.fields[side]]
    if model.batched and not batched:
        return [{**item, "dims": [-1, *item["dims"]]} for item in written]
    return written


def _place(model: _Model, folder: Path) -> None:
    """An ensemble has an empty version folder: Triton wants one."""
    version = folder / _VERSION
    version.mkdir(parents=True)
    for name, source in model.files.items():
        shutil.copyfile(source, version / name)
    (folder / CONFIG).write_text(text_of(model.fields), encoding="utf-8")
    if model.labels:
        (folder / LABELS).write_text("".join(f"{label}\n" for label in model.labels), encoding="utf-8")


def _start(bundles: Sequence[Bundle]) -> list[str]:
    libraries = {bundle.manifest.libraries.get("onnxruntime", "") for bundle in bundles}
    newest = ", ".join(sorted(filter(None, libraries)))
    known = f" Graphs were verified with ONNX Runtime {newest}: take a server whose own is as new." if newest else ""
    return [
        "start: tritonserver --model-repository <this folder>; clients call the models by the folders' names.",
        f"Checked against Triton's schema, not run on a server.{known}",
    ]


LAYOUT = Triton()
