"""A child's process: its answer, its limits, its crash, and that it never outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from toolkit.sweep.child import Ended, run_child

CHILD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from toolkit.sweep.child import perform

def work(task):
    what, note = task
    yield "begun"
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what in ("hang", "crash with a child"):
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(note + ".part").write_text(f"{os.getpid()} {other.pid}")
        Path(note + ".part").rename(note)
        if what == "hang":
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGABRT)
    if what == "hog":
        block = bytearray(300 << 20)
        time.sleep(600)
    print("said", note)
    yield f"{os.getcwd()}"

perform(work)
"""
PARENT = """
import sys
from pathlib import Path
from toolkit.sweep.child import run_child
run_child("odd_child", ("hang", sys.argv[1]), search=sys.path)
"""


@pytest.fixture
def child(tmp_path: Path) -> Callable[..., Ended]:
    (tmp_path / "odd_child.py").write_text(CHILD)

    def run(what: str, **options: object) -> Ended:
        task = (what, str(tmp_path / "note"))
        options = {"folder": tmp_path, "search": [str(tmp_path), *sys.path], **options}
        return run_child("odd_child", task, tmp_path / "log", **options)

    return run


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not left:
            return True
        time.sleep(0.05)
    return False


def test_it_answers_and_logs(child: Callable[..., Ended], tmp_path: Path) -> None:
    assert child("answer") == Ended(0, None, ("begun", str(tmp_path)))
    assert (tmp_path / "log").read_text() == f"said {tmp_path / 'note'}\n"


def test_a_crash_is_an_end_like_another(child: Callable[..., Ended]) -> None:
    assert child("crash") == Ended(-signal.SIGSEGV, None, ("begun",))


def test_what_a_crashed_one_left_behind_is_ended(child: Callable[..., Ended], tmp_path: Path) -> None:
    assert child("crash with a child").code == -signal.SIGABRT
    assert gone([int(pid) for pid in (tmp_path / "note").read_text().split()])


def test_a_hang_is_ended_by_the_limit(child: Callable[..., Ended], tmp_path: Path) -> None:
    ended = child("hang", seconds=3)
    assert ended.breach is not None
    assert ended.breach.what == "seconds"
    assert ended.breach.used > 3
    assert gone([int(pid) for pid in (tmp_path / "note").read_text().split()])


def test_a_hunger_for_memory_is_ended_by_the_limit(child: Callable[..., Ended]) -> None:
    ended = child("hog", memory=200 << 20)
    assert ended.breach is not None
    assert ended.breach.what == "memory"
    assert ended.breach.used > 200 << 20


def test_an_unwanted_one_is_ended(child: Callable[..., Ended], tmp_path: Path) -> None:
    ended = child("hang", unwanted=(tmp_path / "note").exists)
    assert ended.breach is not None
    assert ended.breach.what == "unwanted"
    assert gone([int(pid) for pid in (tmp_path / "note").read_text().split()])


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "odd_child.py").write_text(CHILD)
    note = tmp_path / "note"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(note)], env={**os.environ, "PYTHONPATH": path})
    try:
        deadline = time.monotonic() + 60
        while not note.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = [int(pid) for pid in note.read_text().split()]
    finally:
        parent.kill()
        parent.wait()
    assert gone(pids)
