"""Files that are no GGUF, or not a whole one, or of a kind that is not read: found before any work, and said."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import quant_shape_to_byte_shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_zoo import _gguf, _gguf_file, resolve
from toolkit.errors import ToolkitError, UnsupportedError, UsageError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Q8_0 model with a tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return gguf_files.write(path, gguf_files.model("llama"), "llama", Type.Q8_0, tokenizer=True).read_bytes()


def put(folder: Path, content: bytes) -> str:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" + bytes(100), b"\x80\x02cos\nsystem\n" + bytes(50)])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.gguf is not a GGUF file"):
        resolve(put(tmp_path, content))


@pytest.mark.parametrize(("version", "message"), [(1, "of version 1"), (4, "of version 4"), (3 << 24, "big-endian")])
def test_versions_that_are_not_read(version: int, message: str, whole: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        resolve(put(tmp_path, whole[:4] + struct.pack("<I", version) + whole[8:]))
    assert "Versions 2 and 3" in caught.value.hint


def test_version_2_is_read(whole: bytes, tmp_path: Path) -> None:
    path = Path(put(tmp_path, whole[:4] + struct.pack("<I", 2) + whole[8:]))
    assert _gguf.config_of(path)["model_type"] == "llama"


def test_a_truncated_file_says_how_much_is_there(whole: bytes, tmp_path: Path) -> None:
    short = whole[: len(whole) * 3 // 4]
    end = max(info.start + info.size for info in _gguf_file.read(Path(put(tmp_path, whole))).tensors.values())
    with pytest.raises(UsageError, match=rf"truncated: {len(short):,} of {end:,} bytes .* of its 21 tensors"):
        resolve(put(tmp_path, short))


def test_every_cut_is_found(whole: bytes, tmp_path: Path) -> None:
    path = Path(put(tmp_path, whole))
    file = _gguf_file.read(path)
    last = max(info.start + info.size for info in file.tensors.values())
    cuts = [*range(0, file.end, max(1, file.end // 150)), file.end, last - 1]
    for cut in cuts:
        with pytest.raises(UsageError, match=r"not a GGUF file|truncated"):
            _gguf.config_of(Path(put(tmp_path, whole[:cut])))
    put(tmp_path, whole[:last])
    assert _gguf.config_of(path)["model_type"] == "llama"


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q6_K, Type.IQ4_NL, Type.BF16, Type.I32])
def test_a_type_that_is_not_read_is_named(kind: Type, tmp_path: Path) -> None:
    shape = (4, 256)
    extra: dict[str, Any] = {"blk.1.ffn_gate.weight": (np.zeros(shape, np.int32), None)}
    if kind is not Type.I32:
        extra = {"blk.1.ffn_gate.weight": (np.zeros(quant_shape_to_byte_shape(shape, kind), np.uint8), kind)}
    source = gguf_files.model("llama", num_hidden_layers=1)
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama", extra=extra)
    with pytest.raises(UnsupportedError, match=rf"'blk\.1\.ffn_gate\.weight' is of type {kind.name}") as caught:
        resolve(str(path))
    assert "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0" in caught.value.hint


def test_a_name_that_comes_twice(whole: bytes, tmp_path: Path) -> None:
    assert whole.count(b"blk.0.attn_k.weight") == 1
    with pytest.raises(UsageError, match="same name"):
        resolve(put(tmp_path, whole.replace(b"blk.0.attn_k.weight", b"blk.0.attn_v.weight")))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.attention.head_count", 0, "says '0' for 'llama.attention.head_count'"),
        ("llama.attention.head_count", 100, "64 channels for 100 heads"),
        ("llama.attention.head_count_kv", 5, "32 rows for 5 heads"),
        ("llama.block_count", "two", "says 'two' for 'llama.block_count'"),
        ("llama.rope.freq_base", float("nan"), "says 'nan' for 'llama.rope.freq_base'"),
        ("general.alignment", 24, "an alignment of 24"),
    ],
)
def test_values_that_make_no_sense(key: str, value: Any, message: str, tmp_path: Path) -> None:
    source = gguf_files.model("llama")
    with pytest.raises(UsageError, match=message):
        resolve(str(gguf_files.write(tmp_path / "a.gguf", source, "llama", metadata={key: value})))


def test_a_file_that_was_replaced_is_read_again(whole: bytes, tmp_path: Path) -> None:
    path = Path(put(tmp_path, whole))
    assert len(_gguf_file.read(path).tensors) == 21
    put(tmp_path, whole[:-5000])
    with pytest.raises(UsageError, match="truncated"):
        _gguf_file.read(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_never_a_crash(data: st.DataObject, whole: bytes, tmp_path: Path) -> None:
    """Any bytes of the header may be wrong: either the file still makes sense, or the error is one of ours."""
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(4, 6000))
        broken[position] = data.draw(st.integers(0, 255))
    _gguf_file._read.cache_clear()
    try:
        _gguf.config_of(Path(put(tmp_path, bytes(broken))))
    except ToolkitError as error:
        assert str(error)
        assert error.hint
