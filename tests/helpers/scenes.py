"""Drawn images with a structure of their own."""

import numpy as np
from PIL import Image, ImageDraw


def scene(path, seed, size=(240, 180)):
    """A drawn image with a structure of its own."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = (int(rng.integers(0, extent - 40)) for extent in size)
        draw.ellipse((x, y, x + 40, y + 40), fill=tuple(rng.integers(0, 256, 3).tolist()))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
