"""Seldom looking for cycles ends with the block, however it ends."""

import gc

import pytest

from toolkit.garbage import collected_seldom


def test_the_threshold_is_raised_and_put_back() -> None:
    before = gc.get_threshold()
    with collected_seldom():
        assert gc.get_threshold()[0] > before[0]
        assert gc.get_threshold()[1:] == before[1:]
    assert gc.get_threshold() == before


def test_an_error_puts_it_back_too() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), collected_seldom():
        raise KeyError
    assert gc.get_threshold() == before
