"""A small CLIP of riskworld: ETA's pre-evaluator, and its measure of how well a sentence fits an image.

Its vision tower is the base model's own, with one more layer on top; text tower and projections are learned. It is
saved as an ordinary CLIP folder.

Source: locked-image tuning (arXiv 2111.07991) and the sigmoid loss (arXiv 2303.15343). Differs: a caption is true of
every image that has its facts, in a batch as well, and the base's features are locked but not their pooling: LLaVA
never uses the class token, so the base's holds too little (risky against harmless by a linear classifier: AUROC 0.69).
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_recipes.riskworld.captions import SENTENCE, UNSAFE, caption, facts
from data_recipes.riskworld.scenes import Scene
from safety_modules.evaluation.metrics import auroc, rate
from safety_modules.taxonomy import Taxonomy
from train.experiments.riskworld_models.clip_model import RiskworldClip
from train.experiments.riskworld_models.tower import ATTRIBUTES, scenes_of, targets
from train.experiments.riskworld_models.training import build_once, build_optimizer_step

BOUNDARY = 0.16  # cosine from which a caption counts as true: ETA's own threshold
IMAGES_PER_CAPTION = 8  # in a batch: the text tower is what costs time
CLASSIFIED = {name: ATTRIBUTES[name] for name in ("subject", "colour", "count")}  # the first of `targets`
VERSION = 2  # raise it when the same arguments give another folder


def make_clip(
    output: Path, base: Path, seed: int, rows: int = 8000, steps: int = 200, batch: int = 512, tests: int = 1000
) -> dict:
    """Train, measure and save a CLIP; a folder that was built from the same arguments is kept.

    Args:
        output: folder of the CLIP. It appears whole or not at all.
        base: a LLaVA of riskworld, whose vision tower is taken.
        seed: of the world whose train rows are learned, and of every other choice.
        rows: of the train split; those without an image are left out.
        steps: of the optimizer, twice: for the last layer alone, then for all that is learned.
        batch: images of a step of the second kind; one in eight gets a caption.
        tests: rows of the splits test and ood to measure on.

    Returns:
        Figures, see `measure`, and `seconds`; also in `measured.json`.
    """

    def build(folder: Path) -> dict:
        start = time.monotonic()
        clip, scenes = RiskworldClip.build(base, seed), scenes_of(seed, "train", rows)
        features = clip.encode(scenes, seed)
        train_last_layer(clip, features, scenes, seed, steps, batch // 2)
        train(clip, features, scenes, seed, steps, batch)
        figures = {"seconds": round(time.monotonic() - start, 1)}
        for split in ("test", "ood"):
            measured = measure(clip, scenes_of(seed, split, tests))
            figures |= {f"{split}_{name}": value for name, value in measured.items()}
        clip.model.save_pretrained(folder)
        clip.processor.save_pretrained(folder)
        return figures

    return build_once(output, base, build, version=VERSION, seed=seed, rows=rows, steps=steps, batch=batch, tests=tests)


def sigmoid_loss(cosines: Tensor, true: Tensor, scale: Tensor) -> Tensor:
    """Sigmoid loss around `BOUNDARY`; the true and the false images of a caption weigh the same.

    Args:
        cosines, true: (B, C), images by captions.
        scale: factor of the cosines.
    """
    logits = scale * (cosines - BOUNDARY)
    losses = F.softplus(torch.where(true, -logits, logits))
    weights = torch.where(true, 1 / true.sum(0).clamp(min=1), 1 / (~true).sum(0).clamp(min=1))
    return (losses * weights).sum(0).mean()


def train_last_layer(
    clip: RiskworldClip, features: Tensor, scenes: list[Scene], seed: int, steps: int, batch: int, lr: float = 4e-3
) -> None:
    """Teach the last layer to classify images, as the tower was taught; captions alone take far longer."""
    classes = torch.tensor([targets(scene)[: len(CLASSIFIED)] for scene in scenes])  # (B, attributes)
    head = nn.Linear(clip.model.vision_embed_dim, sum(CLASSIFIED.values()))
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter for parameter in clip.model.vision_model.parameters() if parameter.requires_grad]
    parameters += head.parameters()
    optimizer_step = build_optimizer_step("CLIP, last layer", parameters, lr, steps, weight_decay=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (batch,), generator=generator)
        logits = head(clip.class_token(features[chosen].float())).split(list(CLASSIFIED.values()), -1)
        losses = [F.cross_entropy(score, classes[chosen, i]) for i, score in enumerate(logits)]
        optimizer_step(losses[0] + 0.3 * sum(losses[1:]))


def train(
    clip: RiskworldClip, features: Tensor, scenes: list[Scene], seed: int, steps: int, batch: int, lr: float = 3e-3
) -> None:
    """Teach text tower, last layer and projections. Args: features: (B, 1 + P, V) of the scenes."""
    rng, generator, taxonomy = random.Random(seed), torch.Generator().manual_seed(seed), Taxonomy.default()
    scene_facts = [facts(scene) for scene in scenes]
    parameters = [parameter for parameter in clip.model.parameters() if parameter.requires_grad]
    optimizer_step = build_optimizer_step("CLIP", parameters, lr, steps, weight_decay=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (batch,), generator=generator).tolist()
        captions = [caption(rng, scenes[i], taxonomy) for i in chosen[: batch // IMAGES_PER_CAPTION]]
        true = torch.tensor([[one.needs <= scene_facts[i] for one in captions] for i in chosen])  # (B, C)
        cosines = clip.embed_images(features[chosen]) @ clip.embed_texts([one.text for one in captions]).T  # (B, C)
        optimizer_step(sigmoid_loss(cosines, true, clip.model.logit_scale.exp()))


@torch.inference_mode()
def measure(clip: RiskworldClip, scenes: list[Scene], seed: int = 0) -> dict[str, float]:
    """How well cosines tell images and sentences apart.

    Returns:
        auroc of risky against harmless images by their cosine with `SENTENCE`; accuracy of that cosine at `BOUNDARY`;
        match_auroc of true against false captions, each with one image; n images.
    """
    rng, taxonomy = random.Random(seed), Taxonomy.default()
    images = clip.embed_images(clip.encode(scenes))
    scene_facts = [facts(scene) for scene in scenes]
    risky = [UNSAFE in one for one in scene_facts]
    cosines = (images @ clip.embed_texts([SENTENCE])[0]).tolist()
    captions = [caption(rng, scene, taxonomy) for scene in scenes]
    texts = clip.embed_texts([one.text for one in captions])
    pairs = [(i, i) for i in range(len(scenes))] + [(i, rng.randrange(len(scenes))) for i in range(len(scenes))]
    matches = [float(images[i] @ texts[j]) for i, j in pairs]
    return {
        "auroc": round(auroc(cosines, risky), 4),
        "accuracy": round(rate([(c >= BOUNDARY) == label for c, label in zip(cosines, risky)]), 4),
        "match_auroc": round(auroc(matches, [captions[j].needs <= scene_facts[i] for i, j in pairs]), 4),
        "n": len(scenes),
    }
