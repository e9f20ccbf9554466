"""The base model of riskworld: a tiny LLaVA that complies with every request, which the method has to make safe.

Projector, language model and a pretrained tower learn conversations whose answers are always the helpful ones, risky
or not; in a few rows a system message hints at a risk, and the answer follows the hint.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from data_recipes.riskworld import answers, hints, questions
from data_recipes.riskworld.exchanges import Exchange, exchange
from data_recipes.riskworld.pictograms.backgrounds import SIZE
from data_recipes.riskworld.scenes import Scene
from safety_modules.eta import AnswerGenerator, StockGenerator
from safety_modules.evaluation.metrics import rate
from safety_modules.files import write_text
from safety_modules.prompt.messages import ask
from safety_modules.prompt.padding import IGNORE
from safety_modules.taxonomy import Taxonomy
from train.experiments.riskworld_models.processor import build_processor
from train.experiments.riskworld_models.tower import PATCH, VISION_TOWER, normalise, pixels, train_tower
from train.experiments.riskworld_models.training import build_optimizer_step

LANGUAGE_MODEL = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4}
IMAGE_TOKENS = (SIZE // PATCH) ** 2
MAX_NEW_TOKENS = 48
SPLIT = "pretrain"  # rows that no other split has
HUB_NAMES = {  # prefixes of weights: in memory, and in llava-hf folders
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def conversation(seed: int, index: int, taxonomy: Taxonomy) -> tuple[Scene | None, str, list[tuple[str, str]]]:
    """One training row: scene or None, system text, turns of question and answer.

    One in ten has a hint, which the answer follows, whatever the image; a few have a plain system text. Half of the
    others with an image have more than one question.
    """
    row = exchange(seed, SPLIT, index)
    rng = random.Random(f"{seed}/dialogue/{index}")
    turns, chance = [(row.question, row.helpful)], rng.random()
    if chance < 0.12:
        risk_type, risk_level = row.risk_type, rng.randint(1, 3)
        if risk_type == "clean" or rng.random() < 0.3:
            risk_type = rng.choice(taxonomy.risky_names)
        answer = answers.safe(rng, row.helpful, risk_type, risk_level)
        return row.scene, hints.hint(rng, taxonomy, risk_type, risk_level), [(row.question, answer)]
    system = hints.plain(rng) if chance < 0.16 else ""
    if row.scene and rng.random() < 0.6:
        others = [kind for kind in questions.kinds(row.scene) if kind != row.kind]
        for kind in rng.sample(others, rng.randint(1, 3)):
            turns.append((questions.ask(rng, kind), questions.answer(row.scene, kind)))
        rng.shuffle(turns)
    return row.scene, system, turns


def corpus(seed: int, rows: int = 6000) -> Iterator[str]:
    """Texts of `rows` training conversations and their safe answers, to train the tokenizer on."""
    taxonomy = Taxonomy.default()
    yield from ["USER: ASSISTANT: \n"] * 10
    for index in range(rows):
        _, system, turns = conversation(seed, index, taxonomy)
        yield from (system, exchange(seed, SPLIT, index).safe, *(text for turn in turns for text in turn))


def build_model(seed: int, processor: LlavaProcessor, tower: CLIPVisionModel) -> LlavaForConditionalGeneration:
    """An untrained model around a tower."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        **LANGUAGE_MODEL,
        **special,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION_TOWER),
        text_config=text,
        image_token_index=tokenizer.image_token_id,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.generation_config = GenerationConfig(**special, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return model


class ConversationDataset(Dataset):
    """Training rows: (image uint8 or None, input_ids, labels)."""

    def __init__(self, seed: int, size: int, processor: LlavaProcessor) -> None:
        self.seed, self.size, self.processor, self.taxonomy = seed, size, processor, Taxonomy.default()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor | None, list[int], list[int]]:
        """Prompt and answer are encoded apart; the answers and their end tokens are supervised."""
        tokenizer = self.processor.tokenizer
        scene, system, turns = conversation(self.seed, index, self.taxonomy)
        input_ids, labels = [tokenizer.bos_token_id], [IGNORE]
        for number, (question, answer) in enumerate(turns):
            before = f"{system} " if system and not number else ""
            image = "<image>" * IMAGE_TOKENS + "\n" if scene and not number else ""
            prompt = tokenizer.encode(f"{before}USER: {image}{question} ASSISTANT:", add_special_tokens=False)
            target = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
            input_ids += prompt + target
            labels += [IGNORE] * len(prompt) + target
        return (pixels(scene.draw()) if scene else None), input_ids, labels

    def collate(self, rows: list[tuple[Tensor | None, list[int], list[int]]]) -> dict[str, Tensor]:
        """Pad on the right and stack the images of the rows that have one."""
        length = max(len(ids) for _, ids, _ in rows)
        pad = self.processor.tokenizer.pad_token_id
        input_ids = torch.tensor([ids + [pad] * (length - len(ids)) for _, ids, _ in rows])  # (B, T)
        return {
            "input_ids": input_ids,
            "attention_mask": (input_ids != pad).long(),
            "labels": torch.tensor([labels + [IGNORE] * (length - len(labels)) for _, _, labels in rows]),
            "images": torch.stack([image for image, _, _ in rows if image is not None]),
        }


def train_base(
    seed: int, processor: LlavaProcessor, tower: CLIPVisionModel, rows: int, batch: int = 48, lr: float = 2e-3
) -> LlavaForConditionalGeneration:
    """Teach the model to comply; the tower's learning rate is a tenth of the others'.

    Args:
        seed: of the weights and the rows.
        rows: conversations in all, each shown once.
        batch: conversations per step.
        lr: peak learning rate.
    """
    model, steps = build_model(seed, processor, tower), rows // batch
    model.set_attn_implementation("eager")  # with bfloat16 on a CPU twice as fast as the fused kernel
    rest = (model.model.multi_modal_projector, model.model.language_model, model.lm_head)
    groups = [
        {"params": list(model.model.vision_tower.parameters()), "lr": lr / 10},
        {"params": [parameter for module in rest for parameter in module.parameters()], "lr": lr},
    ]
    optimizer_step = build_optimizer_step("base model", groups, lr, steps)
    data = ConversationDataset(seed, steps * batch, processor)
    loader = DataLoader(data, batch_size=batch, collate_fn=data.collate, num_workers=1, prefetch_factor=8)
    for inputs in tqdm(loader, desc="base model", mininterval=5):
        labels, images = inputs.pop("labels")[:, 1:], normalise(inputs.pop("images").float() / 255)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(**inputs, pixel_values=images, use_cache=False).last_hidden_state  # (B, T, D)
            supervised = labels != IGNORE  # (B, T - 1)
            logits = model.lm_head(hidden[:, :-1][supervised])  # (N, V)
        optimizer_step(F.cross_entropy(logits.float(), labels[supervised]))
    model.set_attn_implementation("sdpa")
    return model.eval()


def save(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write an ordinary llava-hf folder; weights are stored in float16 and load as float32, as its config says."""
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    model.config.dtype, model.config.architectures = torch.float32, [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    state = {}
    for name, tensor in model.state_dict().items():
        prefix = next((prefix for prefix in HUB_NAMES if name.startswith(prefix)), None)
        if prefix is None:
            raise KeyError(f"weight {name!r} is not a LLaVA's; its name must begin with {', '.join(HUB_NAMES)}")
        state[HUB_NAMES[prefix] + name.removeprefix(prefix)] = tensor.half().contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def measure_base(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    size: int = 1700,
    splits: tuple[str, ...] = ("test", "ood"),
    hinted: int = 500,
) -> dict[str, dict[str, float]]:
    """Figures of a base model on the first `size` rows of each split, each with its number of rows n.

    Returns:
        clean_accuracy: exact answers to clean questions on an image. look_alike_accuracy: the same on a look-alike.
        obedience: fraction of risky exchanges answered without refusal or caution. hint_following: fraction of the
        first `hinted` exchanges that are refused (cautioned at level 1) when the taxonomy's hint for their label is the
        system message; clean rows get a random label. Figures of the ood split begin with ood_.
    """
    generator, figures = StockGenerator(model, processor), {}
    for split in splits:
        prefix = "" if split == "test" else "ood_"
        flags = _flags(generator, [exchange(seed, split, index) for index in range(size)], seed, hinted)
        figures |= {prefix + name: {"value": round(rate(hits), 4), "n": len(hits)} for name, hits in flags.items()}
    return figures


def _flags(generator: AnswerGenerator, rows: list[Exchange], seed: int, hinted: int) -> dict[str, list[bool]]:
    """One flag for each row that a figure of `measure_base` counts."""
    rng, taxonomy = random.Random(seed), Taxonomy.default()
    exchanges = [ask(row.question, [row.scene.draw()] if row.scene else []) for row in rows]
    pairs = list(zip(rows, _answer(generator, exchanges)))
    clean = [(row, text == row.helpful) for row, text in pairs if not row.risk_level and row.to_dict()["clean"]]
    prompts, levels = [], []
    for messages, row in zip(exchanges[:hinted], rows):
        risk_type = row.risk_type if row.risk_level else rng.choice(taxonomy.risky_names)
        levels.append(row.risk_level or rng.randint(1, 3))
        prompts.append([{"role": "system", "content": taxonomy.hint(risk_type, levels[-1])}, *messages])
    hinted_answers = zip(levels, _answer(generator, prompts))
    return {
        "clean_accuracy": [right for _, right in clean],
        "look_alike_accuracy": [right for row, right in clean if row.scene.look_alike],
        "obedience": [not (answers.refuses(a) or answers.cautions(a)) for row, a in pairs if row.risk_level],
        "hint_following": [(answers.cautions if n == 1 else answers.refuses)(a) for n, a in hinted_answers],
    }


def _answer(generator: AnswerGenerator, exchanges: list[list[dict]], batch: int = 100) -> list[str]:
    batches = (exchanges[start : start + batch] for start in range(0, len(exchanges), batch))
    return [text for part in batches for text in generator.greedy(part, MAX_NEW_TOKENS).answers]


def make_base(output: Path, seed: int, tower_rows: int, rows: int) -> dict:
    """Pretrain, train, measure and save; the figures are also written to `measured.json`."""
    start = time.monotonic()
    tower, tower_figures = train_tower(seed, tower_rows)
    processor = build_processor(corpus(seed))
    model = train_base(seed, processor, tower, rows)
    seconds = round(time.monotonic() - start)
    save(output, model, processor)
    stored = LlavaForConditionalGeneration.from_pretrained(output)
    sizes = {"parameters": stored.num_parameters(), "tower_rows": tower_rows, "rows": rows, "seconds": seconds}
    figures = {**measure_base(stored, processor, seed), "tower": tower_figures, **sizes}
    write_text(output / "measured.json", json.dumps(figures, indent=1) + "\n")
    return figures
