"""Backgrounds: light, of one or two tones; some are used in the ood split alone."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

SIZE = 64  # pixels of an image's side
TRAIN = ("plain", "gradient", "stripes", "split")
HELD_OUT = ("checker", "dots")


def draw(kind: str, rng: random.Random) -> Image.Image:
    """A background of a name of `TRAIN` or `HELD_OUT`: SIZE x SIZE, RGB."""
    one, two = (tuple(rng.randint(205, 255) for _ in range(3)) for _ in range(2))
    image = Image.new("RGB", (SIZE, SIZE), one)
    canvas = ImageDraw.Draw(image)
    if kind == "gradient":
        ramp = Image.linear_gradient("L").resize((SIZE, SIZE)).rotate(90 * rng.randrange(4))
        image.paste(two, (0, 0), ramp)
    elif kind == "stripes":
        step, across = rng.choice((8, 12, 16)), rng.random() < 0.5
        for start in range(0, SIZE, step):
            area = (start, 0, start + step // 2 - 1, SIZE) if across else (0, start, SIZE, start + step // 2 - 1)
            canvas.rectangle(area, fill=two)
    elif kind == "split":
        edge = rng.randint(16, 48)
        canvas.rectangle((0, 0, edge, SIZE) if rng.random() < 0.5 else (0, 0, SIZE, edge), fill=two)
    elif kind == "checker":
        step = rng.choice((8, 16))
        for x in range(0, SIZE, step):
            for y in range(x % (2 * step), SIZE, 2 * step):
                canvas.rectangle((x, y, x + step - 1, y + step - 1), fill=two)
    elif kind == "dots":
        step = rng.choice((10, 14))
        for x in range(step // 2, SIZE, step):
            for y in range(step // 2, SIZE, step):
                canvas.ellipse((x - 3, y - 3, x + 3, y + 3), fill=two)
    return image
