"""A folder of images, a subfolder for each class: a convolutional VAE learns them and draws new ones.

    python examples/images_from_a_folder.py [FOLDER [OUT]]

Without FOLDER, some hundred images of scikit-learn's digits are first written to a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from fastvae.data import Dataset, load
from fastvae.training import TrainConfig, train


def write_digits(folder: Path, count: int = 600) -> None:
    """Grey PNG files of 16 x 16 pixels: ``folder/3/0012.png`` is a three."""
    digits = load("digits")
    assert digits.train_labels is not None
    for number, (pixels, label) in enumerate(zip(digits.train[:count], digits.train_labels, strict=False)):
        path = folder / str(label.item()) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).resize((16, 16), Image.Resampling.BILINEAR).save(path)


def learn(folder: Path, out: Path, epochs: int = 6) -> float:
    """Returns the ELBO of the images that were set aside, in nats per image."""
    images = Dataset.from_files(folder)  # a tenth is set aside for testing, the same files each time
    print(f"{len(images.train)} images {list(images.data_shape)} to train on, {len(images.test)} to test on")
    config = TrainConfig(network="conv", conv_width=8, latent_dim=8, batch_size=32, learning_rate=2e-3, epochs=epochs)
    result = train(config, out, dataset=images)
    return result.history[-1]["test"]["elbo"]


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments[0]) if arguments else Path(temporary, "digits")
        out = Path(arguments[1]) if len(arguments) > 1 else Path("runs/images_from_a_folder")
        if not arguments:
            write_digits(folder)
        print(f"test ELBO: {learn(folder, out):.2f} nats per image; new images are in {out / 'samples.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
