"""What TensorRT compiles, as a Markdown table: `python benchmarks/tensorrt_matrix.py --work DIR --output FILE.md`.

Each model is exported for each scheme by `toolkit export`, and the table is read from the bundles. What is already in
DIR is not made again, be it a bundle or the record of a failure; `--retry` tries what failed once more. Drift is
measured anew for the table, as `toolkit check` does it, once for each bundle; `--retry` measures that again too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.bundle.check import check
from toolkit.bundle.manifest import MANIFEST, Manifest
from toolkit.bundle.read import Bundle, is_bundle, open_bundle
from toolkit.compiled import BuiltEngine, built_engines
from toolkit.console import byte_size
from toolkit.drift.report import StageDrift
from toolkit.drift.table import task_words
from toolkit.hashing import file_sha256
from toolkit.plugins import find
from toolkit.sessions import EngineOrGraph

COLUMNS = (
    "model", "precision", "architecture", "status", "engine", "seconds", "attentions fused", "GEMMs",
    "SQNR dB", "cosine", "task", "gate",
)  # fmt: skip
LIBRARIES = ("tensorrt-rtx-cu13", "tensorrt-cu13", "onnxruntime", "onnx", "torch", "transformers")
MODELS = (
    "vit-base", "dinov2-small-focus", "all-minilm-l6-v2", "bert-base", "llama-random", "smollm2-135m-instruct"
)  # fmt: skip
RANDOM = ("vit-base", "bert-base", "llama-random")
"""Models whose weights are random here: nothing needs to be fetched for them."""
FETCHED = ("dinov2-small-focus", "all-minilm-l6-v2")
"""Models that scripts/fetch_models.py brings as folders; the toolkit finds smollm2-135m-instruct by its name."""
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 512,
    "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
LEGEND = """\
- *status*: `built` is compiled and not run here, `executed` ran on a device of this machine, `graph-only` has no
  engine.
- *attentions fused*: of all attentions in all optimization profiles, those that are one kernel. TensorRT has no fused
  kernel for attention in fp32: there it is split.
- *GEMMs*: products with a weight in all profiles, by what they multiply. Queries, keys and values that share one
  product count once. `half x int4` reads int4 weights within the product, `unpacked` writes them out in half first.
- *SQNR, cosine, task, gate*: drift from fp32 PyTorch of the very graph that was compiled, run by ONNX Runtime on the
  CPU where the status is `built`, under the gate of its scheme. SQNR and cosine are those of the worst output over all
  golden inputs, without positions that are padding.
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """An export that ended with an error: what it said, and the command that says it again."""

    command: str
    exit_code: int
    error: str
    hint: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """What was asked for, and where it is kept."""

    work: Path
    runtime: str
    models: tuple[str, ...]
    schemes: tuple[str, ...]
    architectures: str
    retry: bool

    def bundle(self, model: str, scheme: str) -> Path | None:
        """The bundle of that scheme, if it was made."""
        found = [path for path in self._folder(model).glob(f"*-{self.runtime}-{scheme}") if is_bundle(path)]
        return found[0] if found else None

    def failure(self, model: str, scheme: str) -> Failure | None:
        """The record of its failure, if there is one."""
        path = self._record(model, scheme)
        return Failure(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def make(self, model: str) -> None:
        """Export the model for every scheme that has neither bundle nor record.

        One run serves them all until a scheme fails: it is recorded, and the rest goes on without it.
        """
        if self.retry:
            for scheme in self.schemes:
                self._record(model, scheme).unlink(missing_ok=True)
        while missing := [scheme for scheme in self.schemes if not self._known(model, scheme)]:
            self._make_some(model, missing)

    def _make_some(self, model: str, missing: list[str]) -> None:
        failure = self._export(model, missing)
        first = next((scheme for scheme in missing if not self.bundle(model, scheme)), None)
        if first == missing[0] and len(missing) > 1:
            # Not even the first was made, so the error may be of any of them.
            failure = self._export(model, [first])
        if first is None or self.bundle(model, first):
            return
        if failure is None:
            raise SystemExit(f"{model}: the export ended well but made no {first}")
        self._keep(model, first, failure)

    def _known(self, model: str, scheme: str) -> bool:
        return self.bundle(model, scheme) is not None or self.failure(model, scheme) is not None

    def _export(self, model: str, schemes: Sequence[str]) -> Failure | None:
        targets = [f"--target={self.runtime}-{scheme}" for scheme in schemes]
        options = [*source(model, self.work), *targets, f"--output={self._folder(model)}"]
        options += [f"--arch={self.architectures}"] if self.architectures else []
        print(f"{model}: {', '.join(schemes)}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "toolkit", "export", *options]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        print(done.stderr, file=sys.stderr, flush=True)
        if done.returncode == 0:
            return None
        error, hint = (_said(word, done.stderr) for word in ("error", "hint"))
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return Failure(shlex.join(["toolkit", "export", *options]), done.returncode, error or last[0], hint)

    def _keep(self, model: str, scheme: str, failure: Failure) -> None:
        path = self._record(model, scheme)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(failure), indent=2) + "\n", encoding="utf-8")

    def _record(self, model: str, scheme: str) -> Path:
        return self.work / "failures" / f"{model}-{self.runtime}-{scheme}.json"

    def _folder(self, model: str) -> Path:
        return self.work / Path(model).name


def main() -> int:
    """Make what is missing and write the table; 0 even where an export failed, for the table says so."""
    options = _options()
    matrix = Matrix(
        options.work, options.runtime, _list(options.models), _schemes(options), options.arch, options.retry
    )
    for model in matrix.models:
        matrix.make(model)
    text = "\n".join(render(matrix)) + "\n"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    return 0


def source(model: str, work: Path) -> list[str]:
    """The options of `toolkit export` that choose a model and its weights."""
    if model == "llama-random":
        folder = work / "models" / model
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
        return [f"--model={folder}", "--weights=random"]
    if model in FETCHED:
        return [f"--model={_fetched(model)}"]
    return [f"--model={model}", *(["--weights=random"] if model in RANDOM else [])]


def render(matrix: Matrix) -> Iterator[str]:
    """The document, line by line."""
    bundles = {
        (model, scheme): open_bundle(folder)
        for model in matrix.models
        for scheme in matrix.schemes
        if (folder := matrix.bundle(model, scheme))
    }
    notes: list[str] = []
    yield "# What TensorRT compiles"
    yield ""
    versions = _versions(bundle.manifest for bundle in bundles.values())
    yield f"Written by `{shlex.join(['python', *sys.argv])}`, by {versions}."
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for model in matrix.models:
        for scheme in matrix.schemes:
            bundle = bundles.get((model, scheme))
            rows = _rows(matrix, bundle) if bundle else [_failed(matrix, model, scheme, notes)]
            for row in rows:
                yield f"| {' | '.join((_label(model), scheme, *row))} |"
    yield ""
    yield LEGEND.rstrip()
    yield from (f"\n[^{number}]: {note}" for number, note in enumerate(notes, start=1))


def _rows(matrix: Matrix, bundle: Bundle) -> Iterator[tuple[str, ...]]:
    drift, entry = tuple(_drift(_checked(matrix, bundle))), bundle.manifest.engine
    engines = built_engines(entry.details)
    for engine in engines:
        yield (engine.architecture, entry.status, *_facts(engine), *drift)
    if not engines:
        yield ("-", entry.status, *"----", *drift)


def _checked(matrix: Matrix, bundle: Bundle) -> StageDrift:
    """What `toolkit check` says of the bundle, kept beside the bundles by the hash of its manifest."""
    kept = matrix.work / "checks" / f"{file_sha256(bundle.folder / MANIFEST)}.json"
    if matrix.retry or not kept.is_file():
        print(f"checking {bundle.folder}", file=sys.stderr, flush=True)
        (stage,) = check(bundle, EngineOrGraph(bundle, on_cpu=False).open).stages
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(stage.model_dump_json(), encoding="utf-8")
    return StageDrift.model_validate_json(kept.read_text(encoding="utf-8"))


def _facts(engine: BuiltEngine) -> Iterator[str]:
    yield byte_size(engine.bytes)
    yield f"{engine.seconds:.1f}"
    yield engine.fused_words
    yield engine.gemm_words


def _drift(stage: StageDrift) -> Iterator[str]:
    worst = stage.worst()
    yield _number(worst.sqnr_db, ".1f")
    yield _number(worst.cosine, ".6f")
    yield task_words(stage.task) if stage.task else "-"
    yield "pass" if stage.passed else f"FAILED: {'; '.join(stage.failures)}"


def _failed(matrix: Matrix, model: str, scheme: str, notes: list[str]) -> tuple[str, ...]:
    failure = matrix.failure(model, scheme)
    if failure is None:
        raise SystemExit(f"{model} {scheme} has neither bundle nor record")
    told = " ".join(filter(None, [failure.error, failure.hint]))
    notes.append(f"{_label(model)}, {scheme}: exit code {failure.exit_code}: {told} (`{failure.command}`)")
    return ("-", f"failed[^{len(notes)}]", *("-" for _ in COLUMNS[4:]))


def _versions(manifests: Iterable[Manifest]) -> str:
    found: dict[str, set[str]] = {}
    for manifest in manifests:
        for name in LIBRARIES:
            if name in manifest.libraries:
                found.setdefault(name, set()).add(manifest.libraries[name])
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items()) or "no library"


def _label(model: str) -> str:
    return f"{Path(model).name}{' (random weights)' if model in RANDOM and model != 'llama-random' else ''}"


def _said(word: str, text: str) -> str:
    found = re.search(rf"^{word}: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _fetched(name: str) -> Path:
    path = Path(__file__).resolve().parents[1] / "scripts" / "fetch_models.py"
    spec = importlib.util.spec_from_file_location("fetch_models", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} does not load")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["fetch_models"] = module
    spec.loader.exec_module(module)
    folder: Path = module.default_folder() / name
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{name} is not here: run python scripts/fetch_models.py")
    return folder


def _schemes(options: argparse.Namespace) -> tuple[str, ...]:
    return _list(options.schemes) or tuple(find("runtimes", options.runtime).literals["SCHEMES"])


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="as vit-digits,bert-base")
    parser.add_argument("--schemes", default="", help="as fp16,int8; by default all of the runtime's")
    parser.add_argument("--arch", default="", help="as sm80,sm89; by default the runtime's choice")
    parser.add_argument("--runtime", default="trt-rtx")
    parser.add_argument("--work", type=Path, required=True, help="folder of bundles and failures, kept between runs")
    parser.add_argument("--output", type=Path, required=True, help="the Markdown file, as docs/tensorrt-matrix.md")
    parser.add_argument("--retry", action="store_true", help="try again what failed before")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
