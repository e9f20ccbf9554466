"""The vision tower of riskworld's base model, pretrained as a classifier of what an image shows.

CLIP learned to see before LLaVA read it; a tiny tower needs the same. The classifier's heads are thrown away.
"""

from __future__ import annotations

import io
import logging
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel, get_cosine_schedule_with_warmup

from data_recipes.riskworld.exchanges import exchange
from data_recipes.riskworld.pictograms.backgrounds import SIZE
from data_recipes.riskworld.pictograms.glyphs import GLYPHS
from data_recipes.riskworld.scenes import COLOURS, PLACES, Scene
from data_recipes.riskworld.words import WORDS

logger = logging.getLogger(__name__)

PATCH = 8  # pixels of a patch's side
MEAN, STD = 0.7, 0.3  # of pixels in [0, 1], for all three channels
SUBJECTS = [("glyph", name) for name in GLYPHS] + [("word", name) for name in WORDS]
ATTRIBUTES = {
    "subject": len(SUBJECTS),
    "colour": len(COLOURS),
    "count": 2,
    "place": len(PLACES),
    "frame": 2,
    "underline": 2,
}
IGNORE = -100


def targets(scene: Scene) -> list[int]:
    """Class of each attribute of `ATTRIBUTES`; the place of two pictograms or of a word is ignored."""
    single = scene.kind == "glyph" and scene.count == 1
    return [
        SUBJECTS.index((scene.kind, scene.name)),
        list(COLOURS).index(scene.colour),
        scene.count - 1,
        list(PLACES).index(scene.place) if single else IGNORE,
        int(scene.frame),
        int(scene.underline),
    ]


def pixels(image: Image.Image) -> Tensor:
    """An image as (3, 64, 64), uint8."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


class Scenes(Dataset):
    """Images drawn on demand, and their classes.

    Args:
        seed: of the world.
        split: "test" or "ood" to measure; None for the tower's own images, of the training styles, at times through JPEG.
        size: number of images.
    """

    def __init__(self, seed: int, split: str | None, size: int) -> None:
        self.seed, self.split, self.size = seed, split, size
        if split:
            drawn = (exchange(seed, split, index).scene for index in range(size))
            self.scenes = [scene for scene in drawn if scene]
            self.size = len(self.scenes)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(3, 64, 64) uint8 and (attributes,)."""
        if self.split:
            scene = self.scenes[index]
            return pixels(scene.draw()), torch.tensor(targets(scene))
        rng = random.Random(f"{self.seed}/tower/{index}")
        scene = Scene.sample(rng, rng.choices(("risky", "look_alike", "neutral"), (0.42, 0.42, 0.16))[0])
        image = scene.draw()
        if rng.random() < 0.15:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=rng.randint(15, 60))
            image = Image.open(buffer)
        return pixels(image), torch.tensor(targets(scene))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, thicken, thin, blur, brighten and add noise, each to some of the images.

    Args:
        images: (B, 3, 64, 64) in [0, 1].
        generator: source of every choice.
    """
    images = images.clone()

    def uniform(rows: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, 1, 1, 1, generator=generator)

    def some(share: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) < share).nonzero().flatten()

    turned = some(0.45)
    angle, stretch = (uniform(len(turned), *ends).flatten() for ends in ((-0.38, 0.38), (0.87, 1.16)))
    zero = torch.zeros(len(turned))
    affine = torch.stack((angle.cos() * stretch, -angle.sin(), zero, angle.sin(), angle.cos() / stretch, zero), 1)
    grid = F.affine_grid(affine.view(-1, 2, 3), [len(turned), 3, SIZE, SIZE], align_corners=False)
    images[turned] = F.grid_sample(images[turned], grid, padding_mode="border", align_corners=False)
    thick, thin, blurred = some(0.12), some(0.06), some(0.12)  # ink is dark, so a minimum thickens it
    images[thick] = -F.max_pool2d(-images[thick], 3, 1, 1)
    images[thin] = F.max_pool2d(images[thin], 2, 1, 1)[..., :SIZE, :SIZE]
    images[blurred] = F.avg_pool2d(images[blurred], 3, 1, 1, count_include_pad=False)
    images = images * uniform(len(images), 0.85, 1.1) + uniform(len(images), -0.05, 0.05)
    noisy = some(0.2)
    grey = uniform(len(noisy), 0.2, 0.35)
    images[noisy] = images[noisy] * (1 - grey) + grey * torch.rand(len(noisy), 1, SIZE, SIZE, generator=generator)
    return images.clamp(0, 1)


def normalise(images: Tensor) -> Tensor:
    """[0, 1] to what the image processor gives."""
    return (images - MEAN) / STD


class Classifier(nn.Module):
    """A tower, the mean and an attention pool of its patch features, and a linear head per attribute."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(config)
        width = config.hidden_size
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, 4)
        self.heads = nn.ModuleDict({name: nn.Linear(5 * width, size) for name, size in ATTRIBUTES.items()})

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Logits (B, classes) per attribute of (B, 3, 64, 64)."""
        patches = self.norm(self.tower(pixel_values).last_hidden_state[:, 1:])  # (B, P, V)
        attention = self.score(patches).softmax(1)  # (B, P, 4)
        pooled = torch.einsum("bpk,bpv->bkv", attention, patches).flatten(1)  # (B, 4 V)
        pooled = torch.cat((pooled, patches.mean(1)), -1)  # (B, 5 V)
        return [head(pooled) for head in self.heads.values()]


def vision_config() -> CLIPVisionConfig:
    """4 layers, 96 wide, 64 patches of 8x8 pixels."""
    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=96,
        hidden_act="gelu",
        attn_implementation="eager",  # with bfloat16 on a CPU twice as fast as the fused kernel
    )


def train_tower(seed: int, rows: int, batch: int = 64, lr: float = 1.5e-3) -> tuple[CLIPVisionModel, dict]:
    """Pretrain a tower.

    Args:
        seed: of the weights, the images and the augmentation.
        rows: images in all, each drawn anew.
        batch: images per step.
        lr: peak learning rate; warm-up, then cosine.

    Returns:
        The tower in eval mode, and its accuracies on the test and ood splits.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, steps = Classifier(vision_config()), rows // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    loader = DataLoader(Scenes(seed, None, steps * batch), batch_size=batch, num_workers=1, prefetch_factor=8)
    mean = 5.0
    for step, (images, classes) in enumerate(tqdm(loader, desc="vision tower", mininterval=5)):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(normalise(augment(images.float() / 255, generator)))
        losses = [
            F.cross_entropy(score.float(), classes[:, i], ignore_index=IGNORE, label_smoothing=0.05 if i == 0 else 0.0)
            for i, score in enumerate(logits)
        ]
        loss = losses[0] + 0.3 * sum(losses[1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += 0.02 * (losses[0].item() - mean)
        if step % 250 == 249:
            logger.info("tower: %d rows, subject loss %.3f", (step + 1) * batch, mean)
    figures = {split: accuracies(model, Scenes(seed, split, 1500)) for split in ("test", "ood")}
    logger.info("tower: %s", figures)
    return model.tower.eval(), figures


@torch.no_grad()
def accuracies(model: Classifier, scenes: Scenes) -> dict[str, float]:
    """Accuracy per attribute."""
    model.eval()
    right = {name: [] for name in ATTRIBUTES}
    for images, classes in DataLoader(scenes, batch_size=256):
        for i, (name, score) in enumerate(zip(ATTRIBUTES, model(normalise(images.float() / 255)), strict=True)):
            known = classes[:, i] != IGNORE
            right[name].append((score.argmax(-1) == classes[:, i])[known])
    model.train()
    return {name: round(torch.cat(hits).float().mean().item(), 4) for name, hits in right.items()}
