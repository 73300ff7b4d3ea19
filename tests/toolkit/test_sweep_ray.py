"""A sweep on a real Ray cluster of this machine: rows as anywhere, and workers that die are no end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from odd_models import SOURCE

from toolkit.cli import main
from toolkit.supervision import stop

SWEEP = """
models:
  - vit-digits
  - {model: "odd:lose_the_worker_once", targets: [ort-cpu-fp32]}
  - {model: "odd:lose_every_worker", targets: [ort-cpu-fp32]}
targets: [ort-cpu-fp32, ort-cpu-int8]
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def start_ray(place: str) -> tuple[subprocess.Popen[bytes], str]:
    address = f"127.0.0.1:{free_port()}"
    port = f"--port={address.rpartition(':')[2]}"
    limits = ["--num-cpus=2", f"--object-store-memory={100 << 20}", "--include-dashboard=false"]
    where = ["--node-ip-address=127.0.0.1", f"--temp-dir={place}", port]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats", *where, *limits],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return process, address


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of one node with two CPUs."""
    pytest.importorskip("ray", reason="ray is not installed (pip install 'transformer-export-toolkit[ray]')")
    # Ray's sockets lie below it, and a socket's path is short.
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    process, address = start_ray(place)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while not answers(address):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield address
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        stop(process)
        left = psutil.wait_procs(family, timeout=20)[1]
        shutil.rmtree(place, ignore_errors=True)
    assert left == []


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-m", "toolkit", "sweep", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.heavy
def test_rows_come_back_and_lost_workers_are_tried_anew(cluster: str, tmp_path: Path, own_module: str) -> None:
    (tmp_path / "own.py").write_text(own_module)
    (tmp_path / "odd.py").write_text(SOURCE)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    done = sweep(tmp_path, "sweep.yaml", "--output", "out", "--ray", cluster, "--ray-cpus", "1", "--json")
    assert done.returncode == 5, done.stderr
    rows = {(row["model"], row["target"]): row for row in json.loads(done.stdout)["rows"]}
    assert {key: row["status"] for key, row in rows.items()} == {
        ("vit-digits", "ort-cpu-fp32"): "ok",
        ("vit-digits", "ort-cpu-int8"): "ok",
        ("odd:lose_the_worker_once", "ort-cpu-fp32"): "ok",
        ("odd:lose_every_worker", "ort-cpu-fp32"): "failed",
    }
    assert (tmp_path / "lost").exists()
    assert "lost by Ray" in rows["odd:lose_every_worker", "ort-cpu-fp32"]["error"]
    passed = [row for row in rows.values() if row["status"] == "ok"]
    assert all(len(list((tmp_path / "out" / row["run"]).iterdir())) == 1 for row in passed)
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 4
    assert not list((tmp_path / "out").glob(".*"))

    # Without a retry there is nothing to do, and Ray is not even asked.
    kept = sweep(tmp_path, "sweep.yaml", "--output", "out", "--ray", cluster, "--no-retry-failed", "--json")
    assert kept.returncode == 5
    assert json.loads(kept.stdout)["counts"] == {"ok": 3, "failed": 1}
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 4


@pytest.mark.heavy
def test_more_cpus_than_a_node_has_are_refused(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: vit-digits\ntargets: [ort-cpu-fp32]\n")
    done = sweep(tmp_path, "a.yaml", "--output", "out", "--ray", cluster, "--ray-cpus", "64")
    assert done.returncode == 2
    assert "no node of the Ray cluster has 64 CPUs; the largest has 2" in done.stderr
    assert "--ray-cpus 2" in done.stderr


def test_without_ray_the_pip_command_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.yaml").write_text("model: vit-digits\ntargets: [ort-cpu-fp32]\n")
    result = CliRunner().invoke(main, ["sweep", str(tmp_path / "a.yaml"), "--output", str(tmp_path), "--ray", "auto"])
    assert result.exit_code == 3
    assert "pip install 'transformer-export-toolkit[ray]'" in result.stderr
