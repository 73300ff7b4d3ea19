"""One contender of `encoders_peers.py` in a process, and an environment, of its own.

Its job is a line of JSON in the first argument: `kind`, `path`, `threads`, `embedding` and the kind's own `options`.
Requests come on standard input: `{"run": INPUTS, "times": 5}` is answered with the milliseconds of each run,
`{"embed": [INPUTS...], "output": FILE}` writes one embedding for each row. Inputs are .npz files.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from turns import Answer, pin, serve

OUTPUTS = ("last_hidden_state", "logits")
Array = NDArray[Any]
Run = Callable[[], Mapping[str, Array]]
Bind = Callable[[Mapping[str, Array], bool], Run]
"""Takes inputs, and answers a function that runs the model on them once; true for a shape that will be timed."""


@dataclass(frozen=True)
class Job:
    """What is to run: `path` is a Transformers folder, a model's file or a bundle's folder."""

    kind: str
    path: Path
    threads: int
    embedding: str
    options: Mapping[str, Any]


def torch(job: Job) -> Bind:
    """A Transformers folder in fp32 or, with `dtype`, in bf16; eager, or with `compile` through Inductor.

    `attention` is the attention of Transformers, `torchao` quantizes Linear layers to int8, activations by row.
    Held-out data, of many shapes, runs eagerly: compiling for each would take minutes, and the arithmetic is the same.
    """
    api = import_module("torch")
    transformers = import_module("transformers")
    api.set_num_threads(job.threads)
    config = transformers.AutoConfig.from_pretrained(job.path)
    kind = getattr(transformers, config.architectures[0])
    dtype = getattr(api, job.options.get("dtype", "float32"))
    attention = job.options.get("attention", "sdpa")
    model = kind.from_pretrained(job.path, dtype=dtype, attn_implementation=attention).eval()
    if job.options.get("torchao"):
        quantization = import_module("torchao.quantization")
        quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    forms = {True: model, False: model}
    if job.options.get("compile"):
        setattr(import_module("torch._inductor.config"), "freezing", job.options.get("freezing", True))  # noqa: B010
        forms[True] = api.compile(model, dynamic=False)

    def bind(inputs: Mapping[str, Array], timed: bool) -> Run:
        tensors = {name: api.from_numpy(array) for name, array in inputs.items()}

        def run() -> Mapping[str, Array]:
            with api.no_grad():
                given = {name: item.to(dtype) if item.is_floating_point() else item for name, item in tensors.items()}
                answer = forms[timed](**given)
                return {
                    name: answer[name].float().numpy() for name in ("last_hidden_state", "logits") if name in answer
                }

        return run

    return bind


def onnxruntime(job: Job) -> Bind:
    """An ONNX file in ONNX Runtime's CPU provider with its default options."""
    api = import_module("onnxruntime")
    options = api.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = api.InferenceSession(str(job.path), options, providers=["CPUExecutionProvider"])
    outputs = [item.name for item in session.get_outputs()]
    taken = {item.name for item in session.get_inputs()}

    def bind(inputs: Mapping[str, Array], timed: bool) -> Run:
        given = {name: array for name, array in inputs.items() if name in taken}
        return lambda: dict(zip(outputs, session.run(outputs, given), strict=True))

    return bind


def openvino(job: Job) -> Bind:
    """An ONNX file or an OpenVINO model, for latency; `precision` is OpenVINO's hint, its own choice without one.

    With `static` it is compiled anew for each shape that is timed.
    """
    api = import_module("openvino")
    core = api.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
    if precision := job.options.get("precision"):
        settings["INFERENCE_PRECISION_HINT"] = precision
    model = core.read_model(str(job.path))
    whole = core.compile_model(model, "CPU", settings)
    taken = {item.get_any_name() for item in model.inputs}

    def bind(inputs: Mapping[str, Array], timed: bool) -> Run:
        given = {name: array for name, array in inputs.items() if name in taken}
        compiled = whole
        if timed and job.options.get("static"):
            model.reshape({name: list(array.shape) for name, array in given.items()})
            compiled = core.compile_model(model, "CPU", settings)
        request, names = compiled.create_infer_request(), [item.get_any_name() for item in compiled.outputs]

        def run() -> Mapping[str, Array]:
            answer = request.infer(given)
            return {name: answer[index] for index, name in enumerate(names)}

        return run

    return bind


def bundle(job: Job) -> Bind:
    """A bundle of this toolkit, as `toolkit run` opens it; the process is pinned to the threads."""
    read, sessions = import_module("toolkit.bundle.read"), import_module("toolkit.sessions")
    session = sessions.open_engine(read.open_bundle(job.path))
    return lambda inputs, timed: lambda: session.run(inputs)


KINDS: dict[str, Callable[[Job], Bind]] = {
    "torch": torch,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "bundle": bundle,
}


def embedding(outputs: Mapping[str, Array], inputs: Mapping[str, Array], how: str) -> Array:
    """What is compared, [rows, size]: `logits`; a bundle's `embedding`; else the `cls` token, or the normalised `mean`.

    The mean is that of sentence-transformers' Pooling and Normalize.
    """
    if how == "logits" or "embedding" in outputs:
        return np.asarray(outputs["logits" if how == "logits" else "embedding"], np.float32)
    hidden = np.asarray(outputs["last_hidden_state"], np.float32)
    if how == "cls":
        return hidden[:, 0]
    mask = inputs["attention_mask"][..., np.newaxis].astype(np.float32)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return np.asarray(pooled / np.linalg.norm(pooled, axis=-1, keepdims=True), np.float32)


def main() -> None:
    """Serve the job in the first argument until standard input ends."""
    given = json.loads(sys.argv[1])
    job = Job(given["kind"], Path(given["path"]), given["threads"], given["embedding"], given["options"])
    pin(job.threads)

    def load() -> Answer:
        bind = KINDS[job.kind](job)
        bound: dict[str, Run] = {}
        return lambda request: _answer(job, bind, bound, request)

    serve(load)


def _answer(job: Job, bind: Bind, bound: dict[str, Run], request: Mapping[str, Any]) -> dict[str, Any]:
    if "embed" in request:
        rows = []
        for path in request["embed"]:
            inputs = read_arrays(Path(path))
            run = bound[path] if path in bound else bind(inputs, False)
            rows.append(embedding(run(), inputs, job.embedding))
        np.save(request["output"], np.concatenate(rows))
        return {}
    path = request["run"]
    if path not in bound:
        bound[path] = bind(read_arrays(Path(path)), True)
    return {"ms": [_timed(bound[path]) for _ in range(request["times"])]}


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _timed(run: Run) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
