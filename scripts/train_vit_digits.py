"""Train the built-in model `vit-digits` and write it into `model_zoo/data/vit-digits`.

A small Vision Transformer on scikit-learn's 8 by 8 digits. The recipe (augmentation, rate, epochs) was
chosen on a fold of the training split; the held-out split is looked at once, after the last step.

    python scripts/train_vit_digits.py            # writes the model, prints its held-out accuracy
    python scripts/train_vit_digits.py --folds 4  # cross-validation inside the training split, writes nothing
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_sample_data import DATA, digits_split

SEED = 0
EPOCHS = 150
BATCH = 64
PEAK_RATE = 1e-3
MEAN = STD = 0.5
Images = NDArray[np.uint8]
Classes = NDArray[np.int64]


def config() -> ViTConfig:
    names = [str(digit) for digit in range(10)]
    return ViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=8,
        patch_size=2,
        num_channels=1,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )


def pixels(images: Images) -> torch.Tensor:
    """uint8 [n, 8, 8] to float32 [n, 1, 8, 8], as `preprocessor_config.json` says."""
    return torch.from_numpy((images.astype(np.float32) / 255 - MEAN) / STD).unsqueeze(1)


def augment(batch: torch.Tensor) -> torch.Tensor:
    """Random shift up to 0.6 pixels, rotation up to 8 degrees and scale up to 8%; background comes in at the edge."""
    n = batch.shape[0]
    angle = (torch.rand(n) * 2 - 1) * np.deg2rad(8)
    scale = 1 + (torch.rand(n) * 2 - 1) * 0.08
    shift = (torch.rand(n, 2) * 2 - 1) * (0.6 * 2 / 8)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(matrix, list(batch.shape), align_corners=False)
    background = -MEAN / STD
    return functional.grid_sample(batch - background, grid, align_corners=False) + background


def train(images: Images, classes: Classes, epochs: int = EPOCHS) -> ViTForImageClassification:
    torch.set_num_threads(1)  # the same sums in the same order on any machine
    torch.manual_seed(SEED)
    model = ViTForImageClassification(config()).train()
    inputs, targets = pixels(images), torch.from_numpy(classes)
    steps = epochs * (len(inputs) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        order = torch.randperm(len(inputs))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            logits = model(pixel_values=augment(inputs[rows])).logits
            loss = functional.cross_entropy(logits, targets[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: ViTForImageClassification, images: Images, classes: Classes) -> float:
    guess = model(pixel_values=pixels(images)).logits.argmax(-1).numpy()
    return float((guess == classes).mean())


def cross_validate(images: Images, classes: Classes, folds: int) -> None:
    for fold in range(folds):
        held = np.arange(len(images)) % folds == fold
        model = train(images[~held], classes[~held])
        print(f"fold {fold}: {accuracy(model, images[held], classes[held]):.4f}", flush=True)


def write(model: ViTForImageClassification, folder: Path) -> None:
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 8, "width": 8},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN],
        "image_std": [STD],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folds", type=int, default=0, help="cross-validate inside the training split instead")
    parser.add_argument("--to", type=Path, default=DATA / "vit-digits", help="folder to write")
    options = parser.parse_args()
    split = digits_split()
    if options.folds:
        cross_validate(split["train_images"], split["train_labels"], options.folds)
        return
    model = train(split["train_images"], split["train_labels"])
    write(model, options.to)
    print(f"train    {accuracy(model, split['train_images'], split['train_labels']):.4f}")
    print(f"held out {accuracy(model, split['heldout_images'], split['heldout_labels']):.4f}")


if __name__ == "__main__":
    main()
