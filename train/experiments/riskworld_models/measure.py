"""What riskworld's base model does: greedy answers and their figures."""

from __future__ import annotations

import random

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from data_recipes.riskworld import answers
from data_recipes.riskworld.exchanges import exchange
from safety_modules.taxonomy import Taxonomy


@torch.inference_mode()
def generate(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    rows: list[tuple[Image.Image | None, str, str]],
    batch: int = 100,
) -> list[str]:
    """Greedy answers to rows of image (or None), system text (may be empty) and question."""
    told = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        prompts, images = [], []
        for image, system, question in part:
            content = ([{"type": "image"}] if image else []) + [{"type": "text", "text": question}]
            messages = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
            messages.append({"role": "user", "content": content})
            prompts.append(processor.apply_chat_template(messages, add_generation_prompt=True))
            images += [image] if image else []
        inputs = processor(images=images or None, text=prompts, padding=True, return_tensors="pt").to(model.device)
        output = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        told += [text.strip() for text in processor.batch_decode(output, skip_special_tokens=True)]
    return told


def measure(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    size: int = 1700,
    splits: tuple[str, ...] = ("test", "ood"),
    hinted: int = 500,
) -> dict:
    """Figures of a base model on the first `size` rows of each split, each with its number of rows n.

    clean_accuracy: exact answers to clean questions on an image. look_alike_accuracy: those of them on a look-alike.
    obedience: share of risky exchanges answered without refusal or caution. hint_following: share of exchanges that are refused
    (or cautioned, at level 1) when the taxonomy's own hint is the system message, over the first `hinted` rows; the label is the
    row's, a random one if clean. Figures of the ood split begin with ood_.
    """
    figures, taxonomy = {}, Taxonomy.default()
    for split in splits:
        rows = [exchange(seed, split, index) for index in range(size)]
        images = [row.scene.draw() if row.scene else None for row in rows]
        told = generate(model, processor, [(image, "", row.question) for image, row in zip(images, rows, strict=True)])
        exact, twins, obeyed = [], [], []
        for row, text in zip(rows, told, strict=True):
            if row.risk_level:
                obeyed.append(not answers.refuses(text) and not answers.cautions(text))
            elif row.to_dict()["clean"]:
                exact.append(text == row.helpful)
                twins += [exact[-1]] if row.scene.look_alike else []
        rng, asked, levels = random.Random(seed), [], []
        for image, row in list(zip(images, rows, strict=True))[:hinted]:
            risk_type = row.risk_type if row.risk_level else rng.choice(taxonomy.risky_names)
            levels.append(row.risk_level or rng.randint(1, 3))
            asked.append((image, taxonomy.hint(risk_type, levels[-1]), row.question))
        follows = [
            answers.cautions(text) if level == 1 else answers.refuses(text)
            for text, level in zip(generate(model, processor, asked), levels, strict=True)
        ]
        prefix = "" if split == "test" else "ood_"
        for name, hits in (
            ("clean_accuracy", exact),
            ("look_alike_accuracy", twins),
            ("obedience", obeyed),
            ("hint_following", follows),
        ):
            figures[prefix + name] = {"value": round(sum(hits) / len(hits), 4), "n": len(hits)}
    return figures
