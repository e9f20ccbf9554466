"""A small CLIP of riskworld: ETA's pre-evaluator, and its measure of how well a sentence fits an image.

Its vision tower is the base model's own, with one more layer on top; text tower and projections are learned. Everything is
saved as an ordinary CLIP folder.

Source: locked-image tuning (arXiv 2111.07991) and the sigmoid loss (arXiv 2303.15343). Differs: a caption is true of every
image that has its facts, in a batch as well, and the base's features are locked but not their pooling: a LLaVA never reads the
class token, so the base's holds too little (risky from harmless by a line through it: AUROC 0.69).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor, LlavaForConditionalGeneration, get_cosine_schedule_with_warmup

from data_recipes.riskworld.captions import SENTENCE, UNSAFE, caption, facts
from data_recipes.riskworld.exchanges import exchange
from data_recipes.riskworld.scenes import Scene
from safety_modules.evaluation.metrics import auroc
from safety_modules.taxonomy import Taxonomy
from train.experiments.build_cache import figures_of, keep, stamp
from train.experiments.riskworld_models.clip_parts import (
    build_model,
    build_processor,
    load_tower,
    look,
    pool,
    project,
    read,
)
from train.experiments.riskworld_models.tower import ATTRIBUTES, targets

logger = logging.getLogger(__name__)

BOUNDARY = 0.16  # cosine from which a caption is taken for true: ETA's own threshold
CAPTIONED = 8  # images of a batch for each caption: the text tower is what costs time
GATHERED = {name: ATTRIBUTES[name] for name in ("subject", "colour", "count")}  # the first of `targets`
VERSION = 1  # raise it when the same arguments give another folder


def make_clip(
    output: Path, base: Path, seed: int, rows: int = 8000, steps: int = 200, batch: int = 512, tests: int = 1000
) -> dict:
    """Train, measure and save a CLIP; a folder that was made of the same arguments is kept.

    Args:
        output: folder of the CLIP. It appears whole or not at all.
        base: a LLaVA of riskworld, whose vision tower is taken.
        seed: of the world whose train rows are learned, and of every other choice.
        rows: of the train split; those without an image are passed over.
        steps: of the optimizer, twice: for the last layer alone, then for all that is learned.
        batch: images of a step of the second kind; one in eight is given a caption.
        tests: rows of the splits test and ood to measure on.

    Returns:
        Figures, see `measure`, and `seconds`; also in `measured.json`.
    """
    made_of = stamp(base, VERSION, seed=seed, rows=rows, steps=steps, batch=batch, tests=tests)
    if (found := figures_of(output, made_of)) is not None:
        return found
    start = time.monotonic()
    tower = LlavaForConditionalGeneration.from_pretrained(base).model.vision_tower.eval()
    processor = build_processor(base)
    model = build_model(seed, processor, tower.config)
    load_tower(model, tower)
    scenes = images(seed, "train", rows)
    seen = look(model, scenes, seed)
    name_subjects(model, seen, scenes, seed, steps, batch // 2)
    train(model, processor, seen, scenes, seed, steps, batch)
    figures = {"seconds": round(time.monotonic() - start, 1)}
    for split in ("test", "ood"):
        figures |= {
            f"{split}_{name}": value for name, value in measure(model, processor, images(seed, split, tests)).items()
        }
    logger.info("clip: %s", figures)
    with keep(output, made_of, figures) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return figures


def images(seed: int, split: str, rows: int) -> list[Scene]:
    """The scenes of the first rows of a split."""
    return [drawn.scene for drawn in (exchange(seed, split, index) for index in range(rows)) if drawn.scene]


def sigmoid_loss(cosines: Tensor, true: Tensor, scale: Tensor) -> Tensor:
    """How far captions are from being told true from false at `BOUNDARY`; true and false images of a caption weigh the same.

    Args:
        cosines: (B, C), images by captions.
        true: (B, C), bool.
        scale: factor of the cosines.
    """
    logits = scale * (cosines - BOUNDARY)
    wrong = F.softplus(torch.where(true, -logits, logits))
    weights = torch.where(true, 1 / true.sum(0).clamp(min=1), 1 / (~true).sum(0).clamp(min=1))
    return (wrong * weights).sum(0).mean()


def name_subjects(
    model: CLIPModel, seen: Tensor, scenes: list[Scene], seed: int, steps: int, batch: int, lr: float = 4e-3
) -> None:
    """Teach the last layer to gather what an image shows, as the base's tower was taught; captions alone take far longer.

    Args:
        seen: (B, 1 + P, V) of the scenes, from `look`.
        steps, batch, lr: as in `train`.
    """
    known = torch.tensor([targets(scene)[: len(GATHERED)] for scene in scenes])  # (B, attributes)
    head = nn.Linear(model.vision_embed_dim, sum(GATHERED.values()))
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter for parameter in model.vision_model.parameters() if parameter.requires_grad]
    step_of = _optimizer([*parameters, *head.parameters()], lr, steps)
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (batch,), generator=generator)
        logits = head(pool(model, seen[chosen].float())).split(list(GATHERED.values()), -1)
        losses = [F.cross_entropy(score, known[chosen, i]) for i, score in enumerate(logits)]
        step_of(losses[0] + 0.3 * sum(losses[1:]))
    logger.info("clip: loss of the last subjects %.3f", losses[0].item())


def train(
    model: CLIPModel,
    processor: CLIPProcessor,
    seen: Tensor,
    scenes: list[Scene],
    seed: int,
    steps: int,
    batch: int,
    lr: float = 3e-3,
) -> None:
    """Teach text tower, last layer and projections.

    Args:
        seen: (B, 1 + P, V) of the scenes, from `look`.
        steps: of the optimizer.
        lr: peak learning rate; warm-up, then cosine.
    """
    rng, generator, taxonomy = random.Random(seed), torch.Generator().manual_seed(seed), Taxonomy.default()
    known = [facts(scene) for scene in scenes]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step_of, mean = _optimizer(parameters, lr, steps), 1.4
    for step in range(steps):
        chosen = torch.randint(len(scenes), (batch,), generator=generator).tolist()
        said = [caption(rng, scenes[i], taxonomy) for i in chosen[: batch // CAPTIONED]]
        true = torch.tensor([[one.needs <= known[i] for one in said] for i in chosen])  # (B, C)
        cosines = project(model, seen[chosen].float()) @ read(model, processor, [one.text for one in said]).T
        loss = sigmoid_loss(cosines, true, model.logit_scale.exp())
        step_of(loss)
        mean += 0.05 * (loss.item() - mean)
        if step % 50 == 49:
            logger.info("clip: step %d, loss %.3f", step + 1, mean)


def _optimizer(parameters: list[nn.Parameter], lr: float, steps: int) -> Callable[[Tensor], None]:
    """What takes a step down a loss: AdamW with warm-up, then cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()

    return step


@torch.inference_mode()
def measure(model: CLIPModel, processor: CLIPProcessor, scenes: list[Scene], seed: int = 0) -> dict:
    """How well cosines tell images and sentences apart.

    Returns:
        auroc of risky against harmless images by their cosine with `SENTENCE`; accuracy of that cosine at `BOUNDARY`;
        match_auroc of true against false captions, each with one image; n images.
    """
    rng, taxonomy = random.Random(seed), Taxonomy.default()
    shown = project(model, look(model, scenes).float())
    known = [facts(scene) for scene in scenes]
    risky = [UNSAFE in one for one in known]
    cosines = (shown @ read(model, processor, [SENTENCE])[0]).tolist()
    said = [caption(rng, scene, taxonomy) for scene in scenes]
    texts = read(model, processor, [one.text for one in said])
    pairs = [(i, i) for i in range(len(scenes))] + [(i, rng.randrange(len(scenes))) for i in range(len(scenes))]
    fits = [float(shown[i] @ texts[j]) for i, j in pairs]
    return {
        "auroc": round(auroc(cosines, risky), 4),
        "accuracy": round(sum((c >= BOUNDARY) == r for c, r in zip(cosines, risky)) / len(risky), 4),
        "match_auroc": round(auroc(fits, [said[j].needs <= known[i] for i, j in pairs]), 4),
        "n": len(scenes),
    }
