"""Make the sample data of `model_zoo/data`: photographs, passages and digits. The same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parent.parent / "model_zoo" / "data"
HELD_OUT = 360
CALIBRATION = 128
GOLDEN = 14


def digits_split() -> dict[str, NDArray[np.generic]]:
    """scikit-learn's 1,797 digits in a fixed order: 360 held out, the rest for training.

    Images are uint8 [n, 8, 8] on 0..255, labels int64 [n].
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    return {
        "heldout_images": images[held],
        "heldout_labels": labels[held],
        "train_images": images[train],
        "train_labels": labels[train],
    }


def write_digits() -> None:
    """`digits.npz`: held-out, calibration and golden digits; the last two are part of the training split."""
    split = digits_split()
    train = split["train_images"]
    np.savez_compressed(
        DATA / "digits.npz",
        heldout_images=split["heldout_images"],
        heldout_labels=split["heldout_labels"].astype(np.uint8),
        calibration_images=train[:CALIBRATION],
        golden_images=train[CALIBRATION : CALIBRATION + GOLDEN],
    )


PHOTOS: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "golden/01-chelsea": ("chelsea.png", (0.0, 0.0, 1.0, 1.0)),
    "golden/02-china": ("china.jpg", (0.3, 0.0, 1.0, 1.0)),
    "golden/03-coffee": ("coffee.png", (0.0, 0.0, 1.0, 1.0)),
    "golden/04-rocket": ("rocket.jpg", (0.25, 0.0, 0.9, 1.0)),
    "calibration/01-astronaut": ("astronaut.png", (0.0, 0.0, 1.0, 1.0)),
    "calibration/02-astronaut-face": ("astronaut.png", (0.25, 0.0, 0.65, 0.45)),
    "calibration/03-astronaut-model": ("astronaut.png", (0.55, 0.0, 1.0, 0.6)),
    "calibration/04-flower": ("flower.jpg", (0.0, 0.0, 1.0, 1.0)),
    "calibration/05-flower-petals": ("flower.jpg", (0.2, 0.1, 0.7, 0.85)),
    "calibration/06-flower-leaves": ("flower.jpg", (0.5, 0.3, 1.0, 1.0)),
    "calibration/07-hubble": ("hubble_deep_field.jpg", (0.0, 0.0, 0.6, 0.6)),
    "calibration/08-hubble-galaxies": ("hubble_deep_field.jpg", (0.5, 0.4, 1.0, 1.0)),
    "calibration/09-retina": ("retina.jpg", (0.0, 0.0, 1.0, 1.0)),
    "calibration/10-retina-vessels": ("retina.jpg", (0.4, 0.3, 0.8, 0.7)),
    "calibration/11-camera": ("camera.png", (0.0, 0.0, 1.0, 1.0)),
    "calibration/12-camera-tripod": ("camera.png", (0.3, 0.1, 0.8, 0.6)),
    "calibration/13-brick": ("brick.png", (0.0, 0.0, 0.6, 0.6)),
    "calibration/14-grass": ("grass.png", (0.0, 0.0, 0.6, 0.6)),
    "calibration/15-gravel": ("gravel.png", (0.2, 0.2, 0.8, 0.8)),
    "calibration/16-cell": ("cell.png", (0.0, 0.0, 1.0, 1.0)),
    "calibration/17-clock": ("clock_motion.png", (0.0, 0.0, 1.0, 1.0)),
    "calibration/18-text": ("text.png", (0.0, 0.0, 0.6, 1.0)),
    "calibration/19-microaneurysms": ("microaneurysms.png", (0.0, 0.0, 1.0, 1.0)),
    "calibration/20-horse": ("horse.png", (0.0, 0.0, 1.0, 1.0)),
}
LONGEST_SIDE = 288


def write_photos() -> None:
    """`photos/`: crops (left, top, right, bottom, as fractions) of photographs, at most 288 pixels a side."""
    import skimage
    import sklearn
    from PIL import Image

    places = [
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets" / "images",
    ]
    for name, (source, box) in PHOTOS.items():
        found = next(place / source for place in places if (place / source).is_file())
        with Image.open(found) as image:
            flat = Image.new("RGB", image.size, "white")
            flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
            sides = (*image.size, *image.size)
            crop = flat.crop(tuple(round(part * side) for part, side in zip(box, sides, strict=True)))
        crop.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        target = DATA / "photos" / f"{name}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        crop.save(target, quality=85, optimize=True)


SPLITS = {"golden": 8, "calibration": 64, "evaluation": 256}


def passages() -> list[str]:
    """Prose of Python's own reference, one paragraph a line, 160 to 900 characters, shuffled, no two alike."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for topic in sorted(topics):
        for block in topics[topic].split("\n\n"):
            text = " ".join(block.split())
            if _is_prose(text):
                found.setdefault(text.replace("*", "").replace('"', ""))
    kept = list(found)
    return [kept[index] for index in np.random.default_rng(0).permutation(len(kept))]


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return (
        160 <= len(text) <= 900
        and text[0].isupper()
        and text.endswith(".")
        and "::=" not in text
        and ">>>" not in text
        and letters / len(text) > 0.9
    )


def write_passages() -> None:
    """`passages/`: disjoint splits, one passage a line."""
    everything, start = passages(), 0
    (DATA / "passages").mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS.items():
        chosen = everything[start : start + count]
        if len(chosen) < count:
            raise SystemExit(f"only {len(everything)} passages, {sum(SPLITS.values())} are needed")
        (DATA / "passages" / f"{split}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
        start += count


def main() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    write_digits()
    write_photos()
    write_passages()
    size = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    print(f"{DATA}: {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
