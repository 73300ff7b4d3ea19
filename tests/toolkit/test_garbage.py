"""Seldom looking for cycles ends with the block, however it ends; what was imported is spared until then."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.cli import main
from toolkit.garbage import collected_seldom, spared


def test_the_threshold_is_raised_and_put_back() -> None:
    before = gc.get_threshold()
    with collected_seldom():
        assert gc.get_threshold()[0] > before[0]
        assert gc.get_threshold()[1:] == before[1:]
    assert gc.get_threshold() == before


def test_an_error_puts_it_back_too() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), collected_seldom(), spared():
        raise KeyError
    assert gc.get_threshold() == before
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_is_there_is_spared_until_the_end() -> None:
    with collected_seldom():
        with spared():
            assert not gc.isenabled()
            made = [[] for _ in range(10)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= len(made)
        made.append([])
    assert gc.get_freeze_count() == 0


def test_what_an_application_disabled_or_froze_stays_so() -> None:
    gc.disable()
    gc.freeze()
    try:
        with collected_seldom(), spared():
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count()
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("nonsense", 2)])
def test_a_command_ends_at_once_with_its_code_after_exit_handlers(argument: str, code: int) -> None:
    given = [sys.executable, "-c", _COMMAND, argument]
    said = subprocess.run(given, check=False, capture_output=True, text=True, timeout=60)
    assert said.returncode == code
    assert said.stdout.splitlines()[-1] == "handled"
    assert bool(said.stderr) is bool(code)


_AT_WORK = """
import os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from toolkit.garbage import ends_at_once

def work(name):
    time.sleep(0.2)
    os.write(1, f"{name}\\n".encode())

with ends_at_once():
    threading.Thread(target=work, args=("thread",)).start()
    ThreadPoolExecutor(1).submit(work, "executor")
    sys.exit(3)
"""


def test_threads_that_are_at_work_are_waited_for() -> None:
    ended = subprocess.run([sys.executable, "-c", _AT_WORK], check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, sorted(ended.stdout.split())) == (3, ["executor", "thread"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is always full")
def test_what_cannot_be_written_is_not_hidden() -> None:
    program = (
        "from toolkit.garbage import ends_at_once\nwith ends_at_once():\n    print('lost')\n    raise SystemExit(0)"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program], check=False, stdout=full, stderr=subprocess.PIPE, env=buffered, timeout=60
        )
    assert ended.returncode
    assert b"No space left" in ended.stderr


def test_called_with_arguments_it_ends_no_process() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code


_COMMAND = """
import atexit
from toolkit.cli import main


class Kept:
    def __del__(self):
        print("taken apart")


kept = Kept()
atexit.register(lambda: print("handled"))
main()
"""
