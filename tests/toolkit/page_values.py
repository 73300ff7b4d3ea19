"""Comparisons and searches made by hand, for the page: what a real one may hold, and what a stranger's may."""

from __future__ import annotations

import base64
import json
import math
from io import BytesIO

import numpy as np
from PIL import Image

from toolkit.compare.result import AttentionPicture, Comparison, HeadDrift, Histogram, ModuleDrift, StageModules
from toolkit.drift.gates import judge
from toolkit.drift.report import DriftReport, GreedyDrift, OutputDrift, StageDrift, TaskDrift
from toolkit.hashing import file_sha256
from toolkit.tune.result import Trial, TuneResult
from toolkit.types import Gate

PARTS = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
HARMED = "vit.layers.2.mlp.fc2"
THRESHOLD = 20.0


def modules(layers=4, harmed=HARMED):
    """Modules whose SQNR falls along the network, and below the threshold from `harmed` on."""
    names = [f"vit.layers.{layer}.{part}" for layer in range(layers) for part in PARTS]
    bad = names.index(harmed) if harmed else len(names)
    made = [
        ModuleDrift(module="vit.embeddings", kind="ViTEmbeddings", sqnr_db=math.inf, cosine=1, relative_l2=0, max_abs=0)
    ]
    for index, name in enumerate(names):
        level = 46.0 - 0.7 * index + 2.5 * math.sin(index) - (24 if index >= bad else 0)
        relative = 10 ** (-level / 20)
        made.append(
            ModuleDrift(
                module=name, kind="Linear", tensor=f"{name}.out", shape=("batch", 17, 64), sqnr_db=level,
                cosine=1 - relative**2 / 2, relative_l2=relative, max_abs=3 * relative,
                added=0.11 if index == bad else 1e-5 * (index + 1), reference_absmax=2.0 + index % 6,
                candidate_absmax=80000.0 if index == bad else 2.1 + index % 6, weight_absmax=0.05 * (1 + index % 3),
                overflow=index == bad, bad=level < THRESHOLD,
            )
        )  # fmt: skip
    made.append(ModuleDrift(module="vit.pooler", kind="Linear", failure="holds NaN in 3 of 640 values"))
    return tuple(made)


def picture(seed, size=17):
    """A greyscale PNG in base64."""
    values = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def comparison(candidate="bundles/vit-digits-ort-cpu-int8", **changes):
    """A comparison with everything that the page shows."""
    found = modules()
    stage = tuple(
        module.model_copy(update={"sqnr_db": (module.sqnr_db or 0) + 4}) for module in found if not module.failure
    )
    values = {
        "reference": "vit-digits", "candidate": candidate, "reference_ran_on": "torch 2.13.0+cpu eager fp32 cpu",
        "candidate_ran_on": "onnxruntime 1.32.0 CPUExecutionProvider", "inputs": "3 golden batches",
        "threshold_db": THRESHOLD, "modules": found, "first_bad": HARMED,
        "guilty": (HARMED, "vit.layers.3.mlp.fc2", "vit.layers.3.mlp.fc1"),
        "attention": tuple(
            HeadDrift(
                module=f"vit.layers.{layer}.attention", head=head, divergence=0.002 * (1 + layer) ** 2 * (1 + head),
                reference_entropy=2.1, candidate_entropy=2.2, top1_agreement=1 - 0.01 * layer,
            )
            for layer in range(4) for head in range(4)
        ),
        "pictures": (
            AttentionPicture(
                module="vit.layers.3.attention", head=3, input="digit 0 of batch 1", reference_png=picture(1),
                candidate_png=picture(2),
            ),
        ),
        "stages": (StageModules(stage="quantize", ran_on="onnxruntime 1.32.0 CPUExecutionProvider", modules=stage),),
        "skipped": {"vit.dropout": "folded away by the export"},
        "error": Histogram(edges=(-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03), counts=(2, 9, 31, 40, 11, 1)),
    }  # fmt: skip
    return Comparison.model_validate(values | changes)


def tuning(**changes):
    """A search with a front of two, one trial that drifted and one that failed."""
    quantized = {"scheme": "int8"}
    trials = (
        Trial(
            index=0, target="ort-cpu-fp32", status="measured", sqnr_db=132.96, cosine=1.0, bytes=492000, median_ms=0.92,
            ratio=1.0, ratio_low=0.97, ratio_high=1.03, task="accuracy 98.89%",
        ),
        Trial(
            index=1, target="ort-cpu-int8", quantization=quantized, status="measured", sqnr_db=44.1, cosine=0.99998,
            bytes=438000, median_ms=0.61, ratio=1.51, ratio_low=1.44, ratio_high=1.58,
        ),
        Trial(
            index=2, target="ort-cpu-int8", quantization={"exclude": ["vit.layers.3.*"]}, status="measured",
            sqnr_db=47.9, cosine=0.99999, bytes=467000, median_ms=0.70, ratio=1.31, ratio_low=1.27, ratio_high=1.36,
        ),
        Trial(
            index=3, target="ort-cpu-int4", quantization={"block_size": 128}, status="drifted", sqnr_db=12.4,
            cosine=0.97, bytes=301000, reason="SQNR 12.4 dB is below the gate's 18 dB",
        ),
        Trial(index=4, target="ort-cpu-fp16", status="failed", reason="the kernel is missing"),
    )  # fmt: skip
    values = {
        "model": "vit-digits", "runtime": "ort-cpu", "objective": "both", "gate": Gate(min_sqnr_db=18.0),
        "shape": "batch=8", "machine": "2 cores, AVX512-VNNI", "ran_on": "onnxruntime 1.32.0 CPUExecutionProvider",
        "trials": trials, "pareto": (1,), "winner": 1, "verdict": "int8 pays here: 1.51 times as fast as fp32.",
    }  # fmt: skip
    return TuneResult.model_validate(values | changes)


def rewrite(folder, name, content):
    """Put other content into a bundle as its owner could: with a manifest that agrees."""
    (folder / name).unlink()
    (folder / name).write_text(content, encoding="utf-8")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"][name] = {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
    path.write_text(json.dumps(manifest), encoding="utf-8")


def several_stages():
    """Three stages with a cache, an exact output, a language task with greedy text, and a broken gate."""

    def outputs(level):
        cache = [(f"present.{index}.{side}", level + index) for index in range(2) for side in ("key", "value")]
        made = [("logits", level), *cache]
        return tuple(
            OutputDrift(
                name=name, sqnr_db=value, cosine=1 - 10 ** (-value / 10), relative_l2=10 ** (-value / 20),
                max_abs=1 / value,
            )
            for name, value in made
        )  # fmt: skip

    task = TaskDrift(
        metric="language", output="logits", count=1024, reference_perplexity=12.25, candidate_perplexity=12.875,
        perplexity_ratio=12.875 / 12.25, kl=0.0123456789, kl_is_lower_bound=True, top1_agreement=0.9375,
        greedy=GreedyDrift(steps=64, agreement=0.8125, first_divergence=(3, None)),
    )  # fmt: skip
    exact = OutputDrift(name="logits", sqnr_db=math.inf, cosine=1, relative_l2=0, max_abs=0)
    last = StageDrift(stage="engine", ran_on="onnxruntime 1 CPU", outputs=outputs(17.123456789), task=task)
    return DriftReport.of(
        "torch 2 eager fp32 cpu",
        [
            StageDrift(stage="export", ran_on="onnxruntime 1 CPU", outputs=(exact,), gate=Gate(min_sqnr_db=90.0)),
            StageDrift(stage="quantize", ran_on="onnxruntime 1 CPU", outputs=outputs(31.25), gate=Gate(min_sqnr_db=18)),
            judge(last, Gate(min_sqnr_db=18.0, max_kl=0.05)),
        ],
    )
