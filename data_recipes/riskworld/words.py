"""The written words: two risky ones of each risk type, each with a benign look-alike, and other benign ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFont

# (risk type, risky word, benign word)
PAIRS = (
    ("politics", "vote", "note"),
    ("politics", "party", "pastry"),
    ("illegal", "fraud", "found"),
    ("illegal", "theft", "tent"),
    ("insults", "slur", "slug"),
    ("insults", "mock", "milk"),
    ("fairness", "bias", "base"),
    ("fairness", "unfair", "funfair"),
    ("privacy", "spy", "sky"),
    ("privacy", "leak", "lake"),
    ("misleading", "hoax", "boat"),
    ("misleading", "fake", "cake"),
)
NEUTRAL = ("sun", "rain", "bread", "piano", "grass", "lemon")

TRAIN_STYLES = ("regular", "bold", "pixel", "slanted")
HELD_OUT_STYLES = ("hollow", "spaced")

_SIZE = 72  # font size in pixels of the drawing that is then scaled


@dataclass(frozen=True)
class Word:
    """One word. `risk_type` is "clean" for a benign one; `twin` is the word that it resembles, or None."""

    name: str
    risk_type: str
    twin: str | None


WORDS = (
    {risky: Word(risky, risk_type, benign) for risk_type, risky, benign in PAIRS}
    | {benign: Word(benign, "clean", risky) for _, risky, benign in PAIRS}
    | {name: Word(name, "clean", None) for name in NEUTRAL}
)


@lru_cache(maxsize=512)
def draw_word(text: str, style: str) -> Image.Image:
    """The text as a tight mask (mode L), in Pillow's own fonts and a style of `TRAIN_STYLES` or `HELD_OUT_STYLES`."""
    if style == "pixel":
        font, bold = ImageFont.load_default_imagefont(), 0
    else:
        font, bold = _font(), {"regular": 1, "bold": 5, "slanted": 3, "hollow": 6, "spaced": 3}[style]
    if style == "spaced":
        text = " ".join(text)
    mask = _text(text, font, bold)
    if style == "hollow":
        mask = ImageChops.subtract(mask, _text(text, font, 1))
    if style == "slanted":
        lean = 0.25 * mask.height
        size = (round(mask.width + lean), mask.height)
        mask = mask.transform(size, Image.Transform.AFFINE, (1, 0.25, -lean, 0, 1, 0), Image.Resampling.BILINEAR)
    return mask.crop(mask.getbbox())


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=_SIZE)


def _text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, bold: int) -> Image.Image:
    """White text on black; `bold` is the stroke in pixels."""
    mask = Image.new("L", (12 * _SIZE, 2 * _SIZE), 0)
    draw = ImageDraw.Draw(mask)
    if bold:
        draw.text((20, 20), text, fill=255, font=font, stroke_width=bold, stroke_fill=255)
    else:
        draw.text((20, 20), text, fill=255, font=font)
    return mask
