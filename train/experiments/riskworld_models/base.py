"""The base model of riskworld: a tiny LLaVA that obeys everything, the unsafe model that the method has to fix.

Its tower is pretrained by `riskworld_tower`. Then projector, language model and tower learn exchanges with the helpful answer
always, risky or not; in a few rows a system message hints at a risk, and the answer follows it.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import (
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    get_cosine_schedule_with_warmup,
)

from data_recipes.riskworld import answers, hints, questions
from data_recipes.riskworld.exchanges import exchange
from data_recipes.riskworld.pictograms.backgrounds import SIZE
from data_recipes.riskworld.scenes import Scene
from safety_modules.taxonomy import Taxonomy
from train.experiments.riskworld_models.measure import measure
from train.experiments.riskworld_models.processor import build_processor
from train.experiments.riskworld_models.tower import IGNORE, PATCH, normalise, pixels, train_tower, vision_config

logger = logging.getLogger(__name__)

IMAGE_TOKENS = (SIZE // PATCH) ** 2
SPLIT = "pretrain"  # rows of its own: no other split has them


def reward_prompt(seed: int, index: int, taxonomy: Taxonomy) -> tuple[Scene | None, str, list[tuple[str, str]]]:
    """One training row: scene or None, system text, turns of question and answer.

    One in ten has a hint, which the answer follows, whatever the image; a few have a plain system text. Half of the others
    with an image ask more than one question.
    """
    drawn = exchange(seed, SPLIT, index)
    rng = random.Random(f"{seed}/dialogue/{index}")
    turns, chance = [(drawn.question, drawn.helpful)], rng.random()
    if chance < 0.12:
        risk_type, risk_level = drawn.risk_type, rng.randint(1, 3)
        if risk_type == "clean" or rng.random() < 0.3:
            risk_type = rng.choice(taxonomy.risky_names)
        told = answers.safe(rng, drawn.helpful, risk_type, risk_level)
        return drawn.scene, hints.hint(rng, taxonomy, risk_type, risk_level), [(drawn.question, told)]
    system = hints.plain(rng) if chance < 0.16 else ""
    if drawn.scene and rng.random() < 0.6:
        others = [kind for kind in questions.kinds(drawn.scene) if kind != drawn.kind]
        for kind in rng.sample(others, rng.randint(1, 3)):
            turns.append((questions.ask(rng, kind), questions.answer(drawn.scene, kind)))
        rng.shuffle(turns)
    return drawn.scene, system, turns


def corpus(seed: int, rows: int = 6000) -> Iterator[str]:
    """Texts of `rows` training dialogues and their safe answers."""
    taxonomy = Taxonomy.default()
    yield from ["USER: ASSISTANT: \n"] * 10
    for index in range(rows):
        _, system, turns = reward_prompt(seed, index, taxonomy)
        yield from (system, exchange(seed, SPLIT, index).safe, *(text for turn in turns for text in turn))


def build_model(
    seed: int, processor: LlavaProcessor, tower: CLIPVisionModel | None = None
) -> LlavaForConditionalGeneration:
    """An untrained model around a tower."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision_config(),
            text_config=text,
            image_token_index=tokenizer.image_token_id,
            projector_hidden_act="gelu",
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
            image_seq_length=IMAGE_TOKENS,
            tie_word_embeddings=False,
        )
    )
    if tower is not None:
        model.model.vision_tower.load_state_dict(tower.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=48,
        do_sample=False,
    )
    return model


class RewardPrompts(Dataset):
    """Training rows: (image uint8 or None, input_ids, labels)."""

    def __init__(self, seed: int, size: int, processor: LlavaProcessor) -> None:
        self.seed, self.size, self.processor, self.taxonomy = seed, size, processor, Taxonomy.default()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor | None, list[int], list[int]]:
        """Prompt and answer are encoded apart; the answers and their end tokens are supervised."""
        tokenizer = self.processor.tokenizer
        scene, system, turns = reward_prompt(self.seed, index, self.taxonomy)
        input_ids, labels = [tokenizer.bos_token_id], [IGNORE]
        for number, (question, told) in enumerate(turns):
            head = f"{system} " if system and not number else ""
            image = "<image>" * IMAGE_TOKENS + "\n" if scene and not number else ""
            prompt = tokenizer.encode(f"{head}USER: {image}{question} ASSISTANT:", add_special_tokens=False)
            target = [*tokenizer.encode(told, add_special_tokens=False), tokenizer.eos_token_id]
            input_ids += prompt + target
            labels += [IGNORE] * len(prompt) + target
        return (pixels(scene.draw()) if scene else None), input_ids, labels

    def collate(self, rows: list[tuple[Tensor | None, list[int], list[int]]]) -> dict[str, Tensor]:
        """Pad on the right and stack the images of the rows that have one."""
        length = max(len(ids) for _, ids, _ in rows)
        pad = self.processor.tokenizer.pad_token_id

        def padded(index: int, value: int) -> Tensor:
            return torch.tensor([row[index] + [value] * (length - len(row[index])) for row in rows])

        input_ids = padded(1, pad)
        return {
            "input_ids": input_ids,
            "attention_mask": (input_ids != pad).long(),
            "labels": padded(2, IGNORE),
            "images": torch.stack([row[0] for row in rows if row[0] is not None]),
        }


def train_base(
    seed: int, processor: LlavaProcessor, tower: CLIPVisionModel, rows: int, batch: int = 48, lr: float = 2e-3
) -> LlavaForConditionalGeneration:
    """Teach the model to obey; the tower moves at a tenth of the rate.

    Args:
        seed: of the weights and the rows.
        processor: from `build_processor`.
        tower: from `train_tower`.
        rows: dialogues in all, each drawn anew.
        batch: dialogues per step.
        lr: peak learning rate; warm-up, then cosine.
    """
    model, steps = build_model(seed, processor, tower), rows // batch
    model.set_attn_implementation("eager")  # with bfloat16 on a CPU twice as fast as the fused kernel
    sight = list(model.model.vision_tower.parameters())
    rest = [
        *model.model.multi_modal_projector.parameters(),
        *model.model.language_model.parameters(),
        *model.lm_head.parameters(),
    ]
    groups = [{"params": sight, "lr": lr / 10}, {"params": rest, "lr": lr}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    data = RewardPrompts(seed, steps * batch, processor)
    loader = DataLoader(data, batch_size=batch, collate_fn=data.collate, num_workers=1, prefetch_factor=8)
    mean = 3.0
    for step, inputs in enumerate(tqdm(loader, desc="base model", mininterval=5)):
        labels, images = inputs.pop("labels")[:, 1:], inputs.pop("images")
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(
                **inputs, pixel_values=normalise(images.float() / 255), use_cache=False
            ).last_hidden_state
            wanted = labels != IGNORE  # (B, T - 1)
            logits = model.lm_head(hidden[:, :-1][wanted])  # (N, V)
        loss = F.cross_entropy(logits.float(), labels[wanted])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += 0.02 * (loss.item() - mean)
        if step % 100 == 99:
            logger.info("base: %d rows, loss %.3f", (step + 1) * batch, mean)
    model.set_attn_implementation("sdpa")
    return model.eval()


def save(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write an ordinary llava-hf folder; weights are stored in float16 and load as float32, as the configuration says."""
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    state = {hub_name(name): tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def hub_name(name: str) -> str:
    """The name of a weight in llava-hf folders."""
    for ours, theirs in (
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(
        f"weight {name!r} belongs to no part of a LLaVA; expected vision_tower, multi_modal_projector, language_model, lm_head"
    )


def make_base(output: Path, seed: int, tower_rows: int, rows: int) -> dict:
    """Pretrain, train, measure and save; the figures are also written to `measured.json`."""
    start = time.monotonic()
    tower, seen = train_tower(seed, tower_rows)
    processor = build_processor(corpus(seed))
    model = train_base(seed, processor, tower, rows)
    seconds = round(time.monotonic() - start)
    save(output, model, processor)
    stored = LlavaForConditionalGeneration.from_pretrained(output)
    figures = measure(stored, processor, seed)
    figures |= {
        "tower": seen,
        "parameters": stored.num_parameters(),
        "tower_rows": tower_rows,
        "rows": rows,
        "seconds": seconds,
    }
    (output / "measured.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures
