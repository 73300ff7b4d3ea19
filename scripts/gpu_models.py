"""The steps for one model and one target, and how their JSON is judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu_steps import Checklist, Facts, Judge, Step

__all__ = ["BASELINE", "Pair", "kept", "on_device", "ready", "versions"]

BASELINE = "ort-cpu-fp32"
"""What every engine is timed against beside PyTorch: the same model in fp32 on the processor."""

_LIBRARIES = (
    "torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt-cu13",
    "cuda-bindings",
)  # fmt: skip
_CUDA_GRAPHS = {"TOOLKIT_CUDA_GRAPHS": "1"}
_CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Pair:
    """One model for one target. `toolkit` makes the command that runs the toolkit with arguments."""

    model: str
    source: str
    target: str
    bundles: Path
    toolkit: Callable[..., Sequence[str]]
    needs: tuple[str, ...]

    def steps(self, checklist: Checklist) -> list[Step]:
        """Export, check on the device, drift beside the compiled graph's, and times."""
        export, baseline = (
            self.export(),
            Pair(self.model, self.source, BASELINE, self.bundles, self.toolkit, self.needs),
        )
        check, drift = self._step("check", on_device, "--json"), f"drift {self.model} {self.target}"
        return [
            export,
            check,
            Step(
                drift, self._command("check", "--json", "--on-cpu"), (check.name,), toolkit=True,
                judge=lambda output: _compared(checklist, check.name, output),
            ),
            *self._times(baseline),
        ]  # fmt: skip

    def export(self) -> Step:
        """Export the model for the target; the engine must have run here."""
        arguments = ("--model", self.source, "--target", self.target, "--output", str(self._output), "--json")
        executed = None if self.target == BASELINE else _executed
        command = self.toolkit("export", *arguments)
        return Step(f"export {self.model} {self.target}", command, self.needs, judge=executed, toolkit=True)

    def bundle(self) -> str:
        """The folder that the export left: what it is called hangs on the model's own name."""
        return str(next(self._output.glob("*/manifest.json")).parent)

    def _times(self, baseline: Pair) -> list[Step]:
        name, needs = f"bench {self.model} {self.target}", (self.export().name,)
        both = (*needs, baseline.export().name)

        def against() -> Sequence[str]:
            return self.toolkit("bench", self.bundle(), "--json", "--vs", baseline.bundle())

        torch = Step(f"{name} vs torch", self._command("bench", "--json", "--vs", "torch"), needs, judge=timed)
        steps = [torch, Step(f"{name} vs {BASELINE}", against, both, judge=timed)]
        if self.target.startswith("trt"):
            steps.append(Step(f"{name} with CUDA graphs", against, both, _CUDA_GRAPHS, judge=timed))
        return [replace(step, toolkit=True) for step in steps]

    def _step(self, command: str, judge: Judge, *arguments: str) -> Step:
        name = f"{command} {self.model} {self.target}"
        return Step(name, self._command(command, *arguments), (self.export().name,), judge=judge, toolkit=True)

    def _command(self, command: str, *arguments: str) -> Callable[[], Sequence[str]]:
        return lambda: self.toolkit(command, self.bundle(), *arguments)

    @property
    def _output(self) -> Path:
        return self.bundles / f"{self.model}-{self.target}"


def versions(output: str) -> tuple[str, Facts]:
    """Of `pip list --format=json`, the libraries that matter."""
    found = {entry["name"]: entry["version"] for entry in json.loads(output)}
    return "", {name: found[name] for name in _LIBRARIES if name in found}


def kept(output: str) -> tuple[str, Facts]:
    """The JSON as it is."""
    return "", {"output": json.loads(output)}


def ready(output: str) -> tuple[str, Facts]:
    """Of `doctor --json`, each runtime with the reason why it does not run here, or nothing."""
    runtimes = json.loads(output)["runtimes"]
    return "", {
        entry["name"]: "" if entry["run"] else entry["error"] or entry["reason"] or "it does not run"
        for entry in runtimes
    }


def on_device(output: str) -> tuple[str, Facts]:
    """Of `check --json`: it must have passed, and not on the processor."""
    answer = json.loads(output)
    facts = {"device_sqnr_db": _worst(answer), "ran_on": answer["ran_on"]}
    return _elsewhere(answer["ran_on"]) or ("" if answer["passed"] else "it drifted too far"), facts


def timed(output: str) -> tuple[str, Facts]:
    """Of `bench --json`: the times of both contenders; the first must have run on the device."""
    answer = json.loads(output)
    results = answer["results"]
    facts = {
        "contenders": "; ".join(_times(result) for result in results),
        "ratio": _ratio(answer),
        "device_memory": (results[0].get("device") or {}).get("total"),
        "results": results,
    }
    return _elsewhere(results[0]["ran_on"]), facts


def _executed(output: str) -> tuple[str, Facts]:
    engine = json.loads(output)["bundles"][0]["engine"]
    reason = "" if engine["status"] == "executed" else f"the engine is {engine['status']}: {engine['reason']}"
    return reason, {"builder": engine["builder"], "details": engine["details"]}


def _compared(checklist: Checklist, step: str, output: str) -> tuple[str, Facts]:
    """Drift on the device, as the step told it, beside that of the graph which it was compiled from."""
    measured = next(outcome.facts for outcome in checklist.outcomes if outcome.name == step)
    return "", {**measured, "graph_sqnr_db": _worst(json.loads(output))}


def _elsewhere(ran_on: str) -> str:
    return f"it ran on {ran_on}" if _CPU in ran_on else ""


def _worst(answer: Mapping[str, Any]) -> float | None:
    """The lowest SQNR, in dB, of all outputs of the last stage."""
    found = [float(one["sqnr_db"]) for one in answer["drift"]["stages"][-1]["outputs"] if one["sqnr_db"] is not None]
    return min(found, default=None)


def _times(result: Mapping[str, Any]) -> str:
    if "median_ms" in result:
        return (
            f"{result['label']}: {result['median_ms']:.2f} ms (p90 {result['p90_ms']:.2f}), "
            f"{result['samples_per_second']:.1f} samples/s"
        )
    return f"{result['label']}: TTFT {result['ttft_ms']:.1f} ms, ITL {result['itl_ms']:.2f} ms"


def _ratio(answer: Mapping[str, Any]) -> float | None:
    ratio = answer.get("ratio") or answer.get("itl_ratio")
    return ratio["median"] if ratio else None
