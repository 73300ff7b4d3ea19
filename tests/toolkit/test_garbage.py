"""Seldom looking for cycles ends with the block, however it ends; what was imported is spared until then."""

import gc
import subprocess
import sys

import pytest

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


def test_a_command_ends_without_a_last_look() -> None:
    said = subprocess.run([sys.executable, "-c", _COMMAND], check=True, capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines()[-1] == "frozen"


_COMMAND = """
import atexit, gc, sys
from toolkit.cli import main
atexit.register(lambda: print("frozen" if gc.get_freeze_count() else "not frozen"))
sys.argv = ["toolkit", "--version"]
main()
"""
