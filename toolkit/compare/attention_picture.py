"""An attention map as a picture: a greyscale PNG in base64, and the tokens along its sides."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np

from toolkit.compare.attention_map import Map
from toolkit.compare.result import AttentionPicture

__all__ = ["picture", "token_labels"]


def picture(
    module: str, head: int, name: str, reference: Map, candidate: Map, labels: tuple[str, ...] = ()
) -> AttentionPicture:
    """The two maps [Sq, Skv], white where the larger of their maxima is, black at 0: they compare by eye."""
    peak = max(float(reference.max(initial=0)), float(candidate.max(initial=0))) or 1.0
    return AttentionPicture(
        module=module,
        head=head,
        input=name,
        reference_png=_png(reference / peak),
        candidate_png=_png(candidate / peak),
        labels=labels,
    )


def token_labels(tokens: Iterable[int], folder: Path) -> tuple[str, ...]:
    """The tokens' own text, by the `tokenizer.json` in the folder; nothing where there is none that can be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return ()
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises plain Exception for a broken file; a picture does without labels
        return ()
    return tuple(str(tokenizer.id_to_token(int(token)) or f"[{int(token)}]") for token in tokens)


def _png(grey: Map) -> str:
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(np.round(grey * 255).astype(np.uint8), "L").save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
