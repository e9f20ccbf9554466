"""The vision tower of riskworld's base model, pretrained to classify what an image shows.

CLIP learned to see before LLaVA used it; a tiny tower needs the same. The classification heads are thrown away.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel

from data_recipes.riskworld.exchanges import exchange
from data_recipes.riskworld.pictograms.backgrounds import SIZE
from data_recipes.riskworld.pictograms.glyphs import GLYPHS
from data_recipes.riskworld.scenes import COLOURS, PLACES, Scene
from data_recipes.riskworld.words import WORDS
from safety_modules.prompt.padding import IGNORE
from train.experiments.riskworld_models.training import build_optimizer_step

logger = logging.getLogger(__name__)

PATCH = 8  # pixels of a patch's side
MEAN, STD = 0.7, 0.3  # of pixels in [0, 1], for all three channels
SUBJECTS = [("glyph", name) for name in GLYPHS] + [("word", name) for name in WORDS]
SIZES = (len(SUBJECTS), len(COLOURS), 2, len(PLACES), 2, 2)
ATTRIBUTES = dict(zip(("subject", "colour", "count", "place", "frame", "underline"), SIZES))  # name -> classes
VISION_TOWER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4} | {
    "image_size": SIZE,
    "patch_size": PATCH,
    "projection_dim": 96,
    "hidden_act": "gelu",
    "attn_implementation": "eager",  # with bfloat16 on a CPU twice as fast as the fused kernel
}


def targets(scene: Scene) -> list[int]:
    """Class of each of `ATTRIBUTES`; the place of two pictograms or of a word is ignored."""
    single = scene.kind == "glyph" and scene.count == 1
    return [
        SUBJECTS.index((scene.kind, scene.name)),
        list(COLOURS).index(scene.colour),
        scene.count - 1,
        list(PLACES).index(scene.place) if single else IGNORE,
        int(scene.frame),
        int(scene.underline),
    ]


def scenes_of(seed: int, split: str, rows: int) -> list[Scene]:
    """The scenes of the first rows of a split; rows without an image are left out."""
    exchanges = (exchange(seed, split, index) for index in range(rows))
    return [row.scene for row in exchanges if row.scene]


def pixels(image: Image.Image) -> Tensor:
    """An image as (3, 64, 64), uint8."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def draw(scenes: Sequence[Scene]) -> Tensor:
    """Images of scenes: (B, 3, 64, 64) in [0, 1]."""
    return torch.stack([pixels(scene.draw()) for scene in scenes]).float() / 255


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] as the image processor returns them."""
    return (images - MEAN) / STD


class TowerDataset(Dataset):
    """Images in the styles of training, some of them JPEGs, and their classes: (3, 64, 64) uint8 and (attributes,)."""

    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size = seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Drawn on demand."""
        rng = random.Random(f"{self.seed}/tower/{index}")
        scene = Scene.sample(rng, rng.choices(("risky", "look_alike", "neutral"), (0.42, 0.42, 0.16))[0])
        image = scene.draw()
        if rng.random() < 0.15:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=rng.randint(15, 60))
            image = Image.open(buffer)
        return pixels(image), torch.tensor(targets(scene))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, thicken, thin, blur, brighten and add noise, each to some of the images.

    Args:
        images: (B, 3, 64, 64) in [0, 1].
        generator: source of all randomness.
    """
    images = images.clone()

    def uniform(rows: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, 1, 1, 1, generator=generator)

    def some(fraction: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) < fraction).nonzero().flatten()

    rotated = some(0.45)
    angle, stretch = (uniform(len(rotated), *ends).flatten() for ends in ((-0.38, 0.38), (0.87, 1.16)))
    zero = torch.zeros(len(rotated))
    affine = torch.stack((angle.cos() * stretch, -angle.sin(), zero, angle.sin(), angle.cos() / stretch, zero), 1)
    grid = F.affine_grid(affine.view(-1, 2, 3), [len(rotated), 3, SIZE, SIZE], align_corners=False)
    images[rotated] = F.grid_sample(images[rotated], grid, padding_mode="border", align_corners=False)
    thick, thin, blurred = some(0.12), some(0.06), some(0.12)  # ink is dark, so a minimum thickens it
    images[thick] = -F.max_pool2d(-images[thick], 3, 1, 1)
    images[thin] = F.max_pool2d(images[thin], 2, 1, 1)[..., :SIZE, :SIZE]
    images[blurred] = F.avg_pool2d(images[blurred], 3, 1, 1, count_include_pad=False)
    images = images * uniform(len(images), 0.85, 1.1) + uniform(len(images), -0.05, 0.05)
    noisy = some(0.2)
    grey = uniform(len(noisy), 0.2, 0.35)
    images[noisy] = images[noisy] * (1 - grey) + grey * torch.rand(len(noisy), 1, SIZE, SIZE, generator=generator)
    return images.clamp(0, 1)


class SceneClassifier(nn.Module):
    """A tower, the mean and an attention pool of its patch features, and a linear head for each attribute."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(config)
        width = config.hidden_size
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, 4)
        self.heads = nn.ModuleDict({name: nn.Linear(5 * width, size) for name, size in ATTRIBUTES.items()})

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Logits (B, classes) for each attribute, of (B, 3, 64, 64)."""
        patches = self.norm(self.tower(pixel_values).last_hidden_state[:, 1:])  # (B, P, V)
        attention = self.score(patches).softmax(1)  # (B, P, 4)
        pooled = torch.einsum("bpk,bpv->bkv", attention, patches).flatten(1)  # (B, 4 V)
        pooled = torch.cat((pooled, patches.mean(1)), -1)  # (B, 5 V)
        return [head(pooled) for head in self.heads.values()]


def train_tower(seed: int, rows: int, batch: int = 64, lr: float = 1.5e-3) -> tuple[CLIPVisionModel, dict]:
    """Pretrain a tower.

    Args:
        seed: of the weights, the images and the augmentation.
        rows: images in all, each shown once.
        batch: images per step.
        lr: peak learning rate.

    Returns:
        The tower in eval mode, and its accuracies on the test and ood splits.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, steps = SceneClassifier(CLIPVisionConfig(**VISION_TOWER)), rows // batch
    optimizer_step = build_optimizer_step("vision tower", model.parameters(), lr, steps)
    loader = DataLoader(TowerDataset(seed, steps * batch), batch_size=batch, num_workers=1, prefetch_factor=8)
    for images, classes in tqdm(loader, desc="vision tower", mininterval=5):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(normalise(augment(images.float() / 255, generator)))
        losses = [
            F.cross_entropy(score.float(), classes[:, i], ignore_index=IGNORE, label_smoothing=0.05 if i == 0 else 0.0)
            for i, score in enumerate(logits)
        ]
        optimizer_step(losses[0] + 0.3 * sum(losses[1:]))
    figures = {split: accuracies(model.eval(), scenes_of(seed, split, 1500)) for split in ("test", "ood")}
    logger.info("vision tower: %s", figures)
    return model.tower, figures


@torch.no_grad()
def accuracies(model: SceneClassifier, scenes: Sequence[Scene], batch: int = 256) -> dict[str, float]:
    """Accuracy for each attribute, over the scenes where it is not ignored."""
    hits: dict[str, list[Tensor]] = {name: [] for name in ATTRIBUTES}
    for start in range(0, len(scenes), batch):
        chunk = scenes[start : start + batch]
        classes = torch.tensor([targets(scene) for scene in chunk])  # (B, attributes)
        for i, (name, score) in enumerate(zip(ATTRIBUTES, model(normalise(draw(chunk))), strict=True)):
            labelled = classes[:, i] != IGNORE
            hits[name].append((score.argmax(-1) == classes[:, i])[labelled])
    return {name: round(torch.cat(values).float().mean().item(), 4) for name, values in hits.items()}
