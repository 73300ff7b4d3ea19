"""What contenders load: exports and quantizations of the peers, bundles of ours; made once, kept in the work folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from peers.data import Given
from peers.environments import environment
from peers.models import Model

from toolkit.atomic import publish
from toolkit.bundle.read import is_bundle

__all__ = ["NotMadeError", "build_bundles", "peer_artefact"]

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_PACKAGES = ("toolkit", "exporters", "quantize", "runtimes", "model_zoo")
_TASKS = {"embedding": "feature-extraction", "features": "feature-extraction"}
_NO_GATE = "sqnr=off,cosine=off,relative_l2=off,max_abs=off,accuracy_drop=off,top1=off,overlap=off"


class NotMadeError(Exception):
    """An artefact could not be made; the message is what the table says of its contender."""


def peer_artefact(work: Path, key: str, given: Given, name: str) -> Path:
    """The Transformers folder for `model`, else a file that one of the peers' own tools wrote. Raises NotMadeError."""
    if name == "model":
        return given.folder
    folder = work / "exports" / key / name
    file = folder / ("model.xml" if name == "nncf-int8" else "model.onnx")
    if not file.is_file():
        _make(work, key, given, name, folder)
    return file


def _make(work: Path, key: str, given: Given, name: str, folder: Path) -> None:
    calibration = str(given.calibration)
    script = "nncf_int8.py" if name == "nncf-int8" else "optimum_exports.py"
    with publish(folder, replace=True) as output:
        if name == "nncf-int8":
            words = [str(peer_artefact(work, key, given, "optimum-fp32")), str(output), calibration]
        elif name == "optimum-fp32":
            words = ["fp32", str(given.folder), str(output), calibration, _TASKS.get(given.task, given.task)]
        else:
            source = peer_artefact(work, key, given, "optimum-fp32").parent
            words = [name.removeprefix("optimum-"), str(source), str(output), calibration]
        python = environment(work, "openvino" if name == "nncf-int8" else "optimum")
        _run(f"{key} {name}", [str(python), str(_HERE / script), *words], {"PYTHONPATH": ""})


def build_bundles(work: Path, key: str, model: Model, targets: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Bundles by target, made again whenever the toolkit's sources change; and reasons of those that are not there.

    A target may have changes of its recipe behind a space; targets with the same ones are exported together.
    """
    root = work / "bundles" / _sources() / key
    found: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for recipe in dict.fromkeys(target.partition(" ")[2] for target in targets):
        names = {each: each.partition(" ")[0] for each in targets if each.partition(" ")[2] == recipe}
        folder = root / recipe.replace(",", "-")
        reason = _export(key, model, [name for name in names.values() if _bundle(folder, name) is None], recipe, folder)
        found |= {target: path for target, name in names.items() if (path := _bundle(folder, name))}
        reasons |= {target: reason for target in names if target not in found}
    return found, reasons


def _export(key: str, model: Model, targets: Sequence[str], recipe: str, folder: Path) -> str:
    """Export to these targets; answers why they were not made, if so."""
    if not targets:
        return ""
    command = [sys.executable, "-m", "toolkit", "export", f"--model={model.name}", f"--weights={model.weights}"]
    command += [f"--output={folder}", f"--drift-gate={_NO_GATE}", "--offline"]
    command += [f"--recipe={recipe}"] if recipe else []
    try:
        _run(f"{key} {', '.join(targets)} {recipe}", command + [f"--target={target}" for target in targets], {})
    except NotMadeError as error:
        return str(error)
    return ""


def _bundle(folder: Path, target: str) -> Path | None:
    return next((path for path in folder.glob(f"*-{target}") if is_bundle(path)), None)


def _sources() -> str:
    """What the toolkit's sources hash to, in short."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h"):
                digest.update(path.relative_to(_ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _run(what: str, command: Sequence[str], variables: dict[str, str]) -> None:
    print(f"making {what}", file=sys.stderr, flush=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | variables
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise NotMadeError(f"{what}: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}")
