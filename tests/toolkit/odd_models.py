"""The source of factories whose runs go wrong: written into a test's folder as `odd.py`, beside the `own` module.

A sweep plans its runs before it does them, in another process, which calls the factory too.
"""

from __future__ import annotations

SOURCE = """
import os, signal, sys, time
from pathlib import Path
from own import make

IN_A_RUN = sys.modules["__main__"].__spec__ is not None and sys.modules["__main__"].__spec__.name.endswith("worker")


def crash():
    if IN_A_RUN:
        os.kill(os.getpid(), signal.SIGSEGV)
    return make()


def hang():
    if IN_A_RUN:
        time.sleep(600)
    return make()


def crash_planning():
    if not IN_A_RUN:
        os.kill(os.getpid(), signal.SIGSEGV)
    raise ValueError("no such weights")


def lose_the_worker_once():
    if IN_A_RUN and not Path("lost").exists():
        Path("lost").touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return make()


def lose_every_worker():
    if IN_A_RUN:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return make()
"""
