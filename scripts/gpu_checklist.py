"""Run the whole GPU checklist and write a report; scripts/verify_on_gpu starts it.

    scripts/verify_on_gpu                                  # everything, into ./gpu-report
    scripts/verify_on_gpu --with tensorrt --with cuda      # also TensorRT 11 and ONNX Runtime's CUDA build
    scripts/verify_on_gpu --only tests --only "bench vit"  # some steps by how their names begin, and what they need

It makes virtual environments as scripts/test does (TOOLKIT_VENVS says where), exports models for every target that
runs on this GPU, verifies and times the engines, and compares drift on the device with drift of the compiled graph.
A step that fails stops no other; one that cannot run says why. Nothing is sent anywhere.

Exit codes: 0 all that ran passed, 1 something failed, 2 wrong usage, 4 no GPU here, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import gpu_report
from gpu_models import BASELINE, Pair, kept, ready, versions
from gpu_steps import Checklist, Facts, Outcome, Step

__all__ = ["Place", "find_gpu", "main"]

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = 4
ALWAYS = ("gpu", "install", "doctor", "targets", "fetch")
STEPS = ("install", "versions", "doctor", "tests", "fetch", "targets", "export", "check", "drift", "bench")
BUILT_IN = "vit-digits"
INDEX = "https://pypi.nvidia.com"
_TENSORRT_10 = "tensorrt-cu13>=10.6,<11"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; answers the exit code."""
    options = _options(arguments)
    checklist = Checklist(
        options.output.absolute(), only=options.only, always=ALWAYS, seconds=options.step_timeout,
        written=gpu_report.write,
    )  # fmt: skip
    try:
        if not find_gpu(checklist):
            print(f"no GPU; report: {options.output / 'report.md'}", file=sys.stderr)
            return NO_GPU
        for place in _places(frozenset(options.also)):
            place.run(checklist)
    except KeyboardInterrupt:
        checklist.note(Outcome("interrupted", "failed", reason="stopped by the user"))
        return 130
    print(f"report: {options.output / 'report.md'}")
    return checklist.exit_code


def find_gpu(checklist: Checklist) -> bool:
    """Note the driver's devices; where there are none, why, and that nothing else ran."""
    found, why = _devices().devices()
    if not found:
        checklist.note(Outcome("gpu", "not run", reason=why))
        for name in STEPS:
            checklist.note(Outcome(name, "not run", reason="there is no GPU"))
        return False
    facts = {f"device {index}": f"{device.name} ({device.architecture})" for index, device in enumerate(found)}
    checklist.note(Outcome("gpu", "passed", facts=facts))
    checklist.run(Step("nvidia-smi", ["nvidia-smi"]))
    return True


@dataclass(frozen=True, slots=True)
class Place:
    """A virtual environment, and the runtimes that are verified in it.

    `suffix` tells its steps from another's; `swap` takes ONNX Runtime's CUDA build, which cannot lie beside the other.
    """

    name: str
    requirements: tuple[str, ...]
    runtimes: tuple[str, ...]
    suffix: str = ""
    swap: bool = False

    def run(self, checklist: Checklist) -> None:
        """Install, look around, test, then every model for every target that runs here."""
        install, doctor, fetch = (f"{step}{self.suffix}" for step in ("install", "doctor", "fetch"))
        pip, tests = ("-m", "pip", "list", "--format=json"), ("-m", "pytest", "-q", "-m", "requires_gpu")
        checklist.run(Step(install, ["bash", "-c", self._installing()]))
        checklist.run(Step(f"versions{self.suffix}", self.python(*pip), (install,), judge=versions))
        runs = checklist.run(Step(doctor, self.toolkit("doctor", "--json"), (install,), judge=ready))
        checklist.run(
            Step(f"tests{self.suffix}", self.python(*tests, "--require-devices", str(ROOT / "tests")), (install,))
        )
        script = self.python(str(ROOT / "scripts" / "fetch_models.py"), "--json")
        fetched = checklist.run(Step(fetch, script, (install,), judge=kept))
        listing = self.toolkit("list", "targets", "--json")
        listed = checklist.run(Step(f"targets{self.suffix}", listing, (doctor,), judge=kept))
        targets = self._targets(checklist, runs.facts, listed.facts)
        for model, source in {BUILT_IN: BUILT_IN, **fetched.facts.get("output", {})}.items():
            self._verify(checklist, model, source, targets, doctor)

    def python(self, *arguments: str) -> list[str]:
        """A command of this environment's Python."""
        folder = Path(os.environ.get("TOOLKIT_VENVS") or ROOT) / f".venv-{self.name}"
        return [str(folder / "bin" / "python"), *arguments]

    def toolkit(self, *arguments: str) -> list[str]:
        """A command of the toolkit in this environment."""
        return self.python("-m", "toolkit", *arguments)

    def _installing(self) -> str:
        wanted = shlex.join([self.name, *self.requirements])
        lines = [
            "set -euo pipefail", f"root={shlex.quote(str(ROOT))}", '. "$root/scripts/_environment.sh"',
            f"environment {wanted}",
        ]  # fmt: skip
        if self.swap:
            pip = '"$python" -m pip --disable-pip-version-check'
            lines += [
                f"{pip} uninstall -y onnxruntime onnxruntime-gpu", f"{pip} install 'onnxruntime-gpu[cuda,cudnn]'",
            ]  # fmt: skip
        return "\n".join(lines)

    def _targets(self, checklist: Checklist, runs: Facts, listed: Facts) -> list[str]:
        """The targets of those runtimes that run; of the others it is noted why they do not."""
        for runtime in self.runtimes:
            if why := runs.get(runtime, "doctor does not know it"):
                checklist.note(Outcome(f"export {runtime}", "not run", reason=why))
        wanted = [runtime for runtime in self.runtimes if runs.get(runtime) == ""]
        return [entry["name"] for entry in listed.get("output", ()) if entry["runtime"] in wanted]

    def _verify(self, checklist: Checklist, model: str, source: str, targets: Sequence[str], doctor: str) -> None:
        bundles = checklist.folder / "bundles"

        def pair(target: str) -> Pair:
            return Pair(model, source, target, bundles, self.toolkit, (doctor,))

        first = [] if checklist.passed(pair(BASELINE).export().name) else [pair(BASELINE).export()]
        rest = [step for target in targets for step in pair(target).steps(checklist)]
        checklist.run_all([*first, *rest] if targets else [])


def _places(also: frozenset[str]) -> list[Place]:
    """The environment of TensorRT-RTX (and TensorRT 11), and that of ONNX Runtime's CUDA build."""
    index = ("--extra-index-url", INDEX) if "tensorrt" in also else ()
    extras = ",tensorrt" if "tensorrt" in also else ""
    # Without TensorRT 11, `trt` engines are those of `trt-rtx`.
    runtimes = ("trt-rtx", "trt") if "tensorrt" in also else ("trt-rtx",)
    places = [Place("gpu", (*index, "--editable", f"{ROOT}[dev,rtx{extras}]"), runtimes)]
    if "cuda" in also:
        # Its TensorRT provider loads TensorRT 10 alone.
        tensorrt = (_TENSORRT_10,) if "tensorrt" in also else ()
        requirements = (*index, "--editable", f"{ROOT}[dev]", *tensorrt)
        places.append(Place("gpu-ort", requirements, ("ort-cuda", "ort-trt"), " of onnxruntime-gpu", swap=True))
    return places


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/verify_on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-report"), metavar="DIR", help="default: gpu-report")
    parser.add_argument(
        "--only", action="append", default=[], metavar="STEP",
        help=f"run steps whose names begin so, and what they need; repeatable. Steps: {', '.join(STEPS)}",
    )  # fmt: skip
    parser.add_argument(
        "--with", action="append", default=[], dest="also", choices=["tensorrt", "cuda"],
        help=f"also install TensorRT 11 ({INDEX}), or ONNX Runtime's CUDA build (with both, TensorRT 10 beside it)",
    )  # fmt: skip
    parser.add_argument("--step-timeout", type=float, default=3600.0, metavar="SECONDS", help="default: 3600")
    return parser.parse_args(arguments)


def _devices() -> ModuleType:
    """The toolkit's own module, by its path: nothing is installed yet, and it needs nothing."""
    spec = importlib.util.spec_from_file_location("toolkit_devices", ROOT / "runtimes" / "_tensorrt" / "devices.py")
    if spec is None or spec.loader is None:
        raise SystemExit("error: runtimes/_tensorrt/devices.py is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
