"""Scene: what one 64x64 image shows, and how it is drawn.

An image shows one large pictogram, or two copies of it side by side or stacked, or one written word. The visible
rubric of its level:

| level | image                                              |
|-------|----------------------------------------------------|
| 1     | a single pictogram, or a word alone                |
| 2     | two pictograms, or a word that is underlined       |
| 3     | a solid frame around the image, whatever the count |

Clean images have two pictograms, underlines and frames at the same rates: the rubric alone does not reveal the risk.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from data_recipes.riskworld import words
from data_recipes.riskworld.pictograms import backgrounds, pen
from data_recipes.riskworld.pictograms.backgrounds import SIZE
from data_recipes.riskworld.pictograms.glyphs import GLYPHS, Glyph
from data_recipes.riskworld.words import WORDS, Word

SCALE = 3  # supersampling of outlines

COLOURS = {
    "red": (215, 25, 35),
    "orange": (240, 125, 0),
    "green": (25, 145, 55),
    "blue": (35, 75, 215),
    "purple": (135, 40, 165),
    "pink": (245, 95, 175),
    "black": (25, 25, 25),
}
PLACES = {"left": 20.5, "middle": 32.0, "right": 43.5}
OOD_IMAGES = ("variant", "background", "rotation", "noise", "jpeg")
_FRAME = (60, 60, 60)
_STYLES = {style.name: style for style in pen.TRAIN_STYLES + pen.HELD_OUT_STYLES}


@dataclass(frozen=True)
class Scene:
    """One image.

    Attributes:
        kind: "glyph" or "word".
        name: of the glyph, or the word itself.
        colour: a name of `COLOURS`.
        count: 1 or 2 pictograms; 1 for a word.
        place: "left", "middle" or "right" for a single pictogram, else "middle".
        underline: the word is underlined.
        frame: there is a frame.
        style: name of the way in which the pictogram or word is drawn.
        background: a name of `backgrounds.TRAIN` or `backgrounds.HELD_OUT`.
        ood: a name of `OOD_IMAGES`, or None.
        jitter: seed of everything else (sizes, angles, tints).
    """

    kind: str
    name: str
    colour: str
    count: int
    place: str
    underline: bool
    frame: bool
    style: str
    background: str
    ood: str | None
    jitter: int

    @classmethod
    def sample(cls, rng: random.Random, pool: str, ood: str | None = None) -> Scene:
        """A random scene.

        Args:
            rng: source of every choice.
            pool: "risky", "look_alike" or "neutral".
            ood: a name of `OOD_IMAGES` for an image unlike the training ones.
        """
        kind = "word" if rng.random() < 0.3 else "glyph"
        twice = rng.random() < 0.5
        subjects, module = (WORDS, words) if kind == "word" else (GLYPHS, pen)
        style = rng.choice(module.HELD_OUT_STYLES if ood == "variant" else module.TRAIN_STYLES)
        return cls(
            kind=kind,
            name=_name(rng, subjects, pool),
            colour=rng.choice(list(COLOURS)),
            count=2 if twice and kind == "glyph" else 1,
            place=rng.choice(list(PLACES)) if kind == "glyph" and not twice else "middle",
            underline=twice and kind == "word",
            frame=rng.random() < 1 / 3,
            style=style if kind == "word" else style.name,
            background=rng.choice(backgrounds.HELD_OUT if ood == "background" else backgrounds.TRAIN),
            ood=ood,
            jitter=rng.getrandbits(32),
        )

    @property
    def subject(self) -> Glyph | Word:
        """The `Glyph` or `Word` that is shown."""
        return WORDS[self.name] if self.kind == "word" else GLYPHS[self.name]

    @property
    def risk_type(self) -> str:
        """Type of the image alone, "clean" for a benign one."""
        return self.subject.risk_type

    @property
    def risk_level(self) -> int:
        """Level of the image alone by the rubric, 0 for a benign one."""
        return 0 if self.risk_type == "clean" else self.degree

    @property
    def degree(self) -> int:
        """Level by the rubric, whether the image is risky or not: 1, 2 or 3."""
        return 3 if self.frame else 2 if self.count == 2 or self.underline else 1

    @property
    def look_alike(self) -> bool:
        """Whether the image is benign and resembles a risky one."""
        return self.risk_type == "clean" and self.subject.twin is not None

    def draw(self) -> Image.Image:
        """The image: 64x64, RGB."""
        rng = random.Random(self.jitter)
        image = backgrounds.draw(self.background, rng)
        angle = rng.uniform(-6, 6)
        if self.ood == "rotation":
            angle = rng.choice((-1, 1)) * rng.uniform(14, 24)
        mask = self._word(rng, angle) if self.kind == "word" else self._glyphs(rng, angle)
        tint = tuple(min(255, max(0, value + rng.randint(-12, 12))) for value in COLOURS[self.colour])
        image.paste(tint, (0, 0), mask)
        if self.frame:
            ImageDraw.Draw(image).rectangle((0, 0, SIZE - 1, SIZE - 1), outline=_FRAME, width=4)
        if self.ood == "noise":
            noise = Image.frombytes("L", (SIZE, SIZE), rng.randbytes(SIZE * SIZE)).convert("RGB")
            image = Image.blend(image, noise, rng.uniform(0.25, 0.35))
        if self.ood == "jpeg":
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=rng.randint(12, 25))
            image = Image.open(buffer).convert("RGB")
        return image

    def _glyphs(self, rng: random.Random, angle: float) -> Image.Image:
        half = rng.uniform(14.5, 17) if self.count == 1 else rng.uniform(12.5, 14.5)
        stretch = rng.uniform(0.93, 1.07)
        if self.ood == "variant":
            stretch = rng.choice((0.85, 1.15))
        jitter = [rng.uniform(-1.5, 1.5) for _ in range(2)]
        if self.count == 1:
            centres = [(PLACES[self.place] + jitter[0], 32 + 3 * jitter[1])]
        elif rng.random() < 0.5:
            centres = [(x, 32 + 3 * jitter[1]) for x in (17.5, 46.5)]
        else:
            centres = [(32 + 3 * jitter[0], y) for y in (17.5, 46.5)]
        mask = Image.new("L", (SIZE, SIZE), 0)
        side = round(2.8 * half * SCALE)
        scale = (half * SCALE * stretch, half * SCALE / stretch)
        glyph_pen = pen.Pen((side, side), (side / 2, side / 2), scale, angle, _STYLES[self.style])
        GLYPHS[self.name].draw(glyph_pen)
        stamp = glyph_pen.mask.reduce(SCALE)
        for x, y in centres:
            mask.paste(stamp, (round(x - stamp.width / 2), round(y - stamp.height / 2)), stamp)
        return mask

    def _word(self, rng: random.Random, angle: float) -> Image.Image:
        text = rng.choice((self.name, self.name, self.name.upper()))
        stamp = words.draw_word(text, self.style)
        width = min(rng.uniform(50, 56), 15.0 * len(text))
        height = min(max(width * stamp.height / stamp.width * rng.uniform(0.95, 1.25), 15), 28)
        stamp = stamp.resize((round(width), round(height)), Image.Resampling.BOX if self.style != "pixel" else None)
        mask = Image.new("L", (SIZE, SIZE), 0)
        left, top = round((SIZE - stamp.width) / 2), round((SIZE - stamp.height) / 2 + rng.uniform(-6, 4))
        mask.paste(stamp, (left, top))
        if self.underline:
            bottom = top + stamp.height + 4
            ImageDraw.Draw(mask).rectangle((left, bottom, left + stamp.width, bottom + 2), fill=255)
        return mask.rotate(angle / 1.5, Image.Resampling.BILINEAR)


def _name(rng: random.Random, subjects: dict[str, Glyph] | dict[str, Word], pool: str) -> str:
    """The name of a subject of the pool; risky ones are drawn evenly over types."""
    if pool == "risky":
        return rng.choice([name for name, subject in subjects.items() if subject.risk_type != "clean"])
    benign = [subject for subject in subjects.values() if subject.risk_type == "clean"]
    return rng.choice([subject.name for subject in benign if (subject.twin is not None) == (pool == "look_alike")])
