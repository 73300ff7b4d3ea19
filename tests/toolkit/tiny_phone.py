"""A text bundle for phones, small enough to build in a test: the encoder of `tiny_bundles` as an `.ort` file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from tiny_bundles import text_bundle

from runtimes.ort_mobile import RUNTIME
from toolkit.bundle.read import golden, open_bundle
from toolkit.bundle.write import Contents, engine_mapping, write_bundle
from toolkit.drift.measure import measure
from toolkit.drift.report import DriftReport
from toolkit.processing import NOTHING, Processing
from toolkit.target import Target
from toolkit.types import Gate, QuantizedGraph

GATE = Gate(min_sqnr_db=40.0, min_cosine=0.999)

_NEAREST = """
<ir_version: 10, opset_import: ["" : 21]>
nearest (float[batch, 12] embedding) => (int64[batch] axis, float[batch, 12] unit)
{
    axis = ArgMax<axis = 1, keepdims = 0>(embedding)
    unit = LpNormalization<axis = 1>(embedding)
}
"""


def phone_bundle(folder: Path, *, spoil: float = 0.0, after: Processing = NOTHING) -> Path:
    """Two rows of four tokens, fed to an engine of one row of eight; `spoil` is added to the reference."""
    source = open_bundle(text_bundle(folder.with_name(f"{folder.name}-cpu")))
    inputs, outputs = golden(source)
    spec, path = source.manifest.spec(), folder.with_name(f"{folder.name}-canonical") / source.manifest.graph
    # Copied: a bundle's weights have a second name, and onnx_ir reads no such files.
    shutil.copytree(source.folder, path.parent, copy_function=shutil.copyfile)
    lowered = RUNTIME.lower(QuantizedGraph(path, spec), folder.with_name(f"{folder.name}-work"))
    engine = RUNTIME.build(lowered)
    session = RUNTIME.session(lowered.path.parent, engine_mapping(engine))
    stage = measure("engine", session.ran_on, outputs, [session.run(one) for one in inputs], spec, gate=GATE)
    session.close()
    contents = Contents(
        spec=spec, target=Target("ort-mobile", "fp32"), engine=engine, report=DriftReport.of("numpy", [stage]),
        golden=inputs, golden_reference=[{"embedding": one["embedding"] + np.float32(spoil)} for one in outputs],
        postprocessing=after,
    )  # fmt: skip
    folder.mkdir()
    write_bundle(folder, contents, command="toolkit export --model tiny")
    return folder


def nearest(*, off: int = 0, exact: bool = True, needs: tuple[str, ...] = ()) -> Processing:
    """A graph after the model and two samples of it, whose integers are `off`."""
    samples = []
    for seed in (1, 2):
        given = np.random.default_rng(seed).standard_normal((2, 12)).astype(np.float32)
        unit = given / np.linalg.norm(given, axis=1, keepdims=True)
        samples.append(({"embedding": given}, {"axis": given.argmax(1) + off, "unit": unit.astype(np.float32)}))
    graph = onnx.parser.parse_model(_NEAREST)
    return Processing(graph, tuple(samples), exact=exact, bound=1e-5, compared="2 samples", reason="", needs=needs)
