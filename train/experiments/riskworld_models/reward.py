"""A small reward model of riskworld: ETA's post-evaluator.

It reads texts alone: question, answer, and a verdict where there is one. Lower layers and vocabulary are the base model's own;
everything is saved as an ordinary sequence classification folder with one label, whose chat template takes a user's and an
assistant's message. The higher the better; 0 lies between good and bad.

Source: the role of ArmoRM in ETA (arXiv 2410.06625), which does not see the image either. Differs: one number, learned from
answers whose grade is known by construction.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from data_recipes.riskworld import answers, hints
from data_recipes.riskworld.exchanges import Exchange, exchange
from safety_modules.evaluation.metrics import auroc
from safety_modules.judges.phrases import PhraseJudge
from safety_modules.taxonomy import CLEAN, Taxonomy
from train.experiments.build_cache import figures_of, keep, stamp

logger = logging.getLogger(__name__)

VERSION = 1  # raise it when the same arguments give another folder
JUDGE = PhraseJudge()
LAYERS = 2  # of the base's language model
NEUTRAL = [text for text in hints.PLAIN if "safe" not in text] + ["say whether the answer is safe."]  # fit any question
BEGUN = (
    "As an AI assistant, ",
    "As an AI assistant ",
    "as an ai assistant, ",
)  # ETA's interference prefix: says nothing either way
GOOD, FAIR, SPOILED, UNDECIDED, POOR, BAD = (
    0.95,
    0.8,
    0.6,
    0.5,
    0.2,
    0.05,
)  # chance that an answer of this grade is good
# The user's message holds the verdict; images are passed over, and a system text goes first. Its own beginning-of-text token
# makes the ids the same whether the template is encoded or its text.
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ 'USER: ' }}{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}\
{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"""


@dataclass(frozen=True)
class Group:
    """Answers to one user text.

    Attributes:
        user: verdict (or not) and question.
        answers: (answer, grade) pairs, first the helpful answer, then the safe one, or a needless caution or refusal.
        level: of the exchange.
        told: whether there is a verdict.
        seen: whether text alone can tell the level: there is a verdict, an unsafe request, or no image.
    """

    user: str
    answers: tuple[tuple[str, float], ...]
    level: int
    told: bool
    seen: bool


def group(seed: int, split: str, index: int, taxonomy: Taxonomy) -> Group:
    """The group of a row of the world: the helpful answer, a safe one, one of another level, and one that is spoiled."""
    row, rng = exchange(seed, split, index), random.Random(f"{seed}/reward/{split}/{index}")
    level, risk_type = row.risk_level, row.risk_type if row.risk_level else rng.choice(taxonomy.risky_names)
    told = bool(level) and rng.random() < 0.5
    verdict = _verdict(rng, taxonomy, risk_type, level) if told else rng.choice(NEUTRAL) if rng.random() < 0.1 else ""
    safe = row.safe if level else answers.safe(rng, row.helpful, risk_type, rng.randint(1, 3))
    other = answers.safe(rng, row.helpful, risk_type, rng.choice([n for n in (1, 2, 3) if n != level]))
    said = [(text, grade(text, level)) for text in (row.helpful, safe, other)]
    said.append(_spoiled(rng, row, said, exchange(seed, split, index + 1)))
    seen = told or row.text_type != CLEAN or row.scene is None
    begun = rng.choice(BEGUN) if rng.random() < 0.35 else ""
    user = verdict + rng.choice((" ", "\n\n")) + row.question if verdict else rng.choice(("", "\n\n")) + row.question
    return Group(user, tuple((begun + text, value) for text, value in said), level, told, seen)


def grade(answer: str, level: int) -> float:
    """How good a whole answer is to an exchange of this level, by `PhraseJudge`'s rule; too much care is a lesser fault."""
    refuses, warns = JUDGE.refuses(answer), JUDGE.warns(answer)
    if level == 0:
        return BAD + 0.05 if refuses else POOR if warns else GOOD
    if JUDGE.unsafe(answer, level):
        return POOR if warns else BAD
    return GOOD if refuses == (level > 1) else FAIR


def _verdict(rng: random.Random, taxonomy: Taxonomy, risk_type: str, level: int) -> str:
    """A sentence that names type and level: the taxonomy's own, a rewording, or one of the world's many."""
    if rng.random() < 0.4:
        return rng.choice(taxonomy.hints(risk_type, level))
    return hints.hint(rng, taxonomy, risk_type, level)


def _spoiled(
    rng: random.Random, row: Exchange, said: Sequence[tuple[str, float]], other: Exchange
) -> tuple[str, float]:
    """What a search meets: an answer that is cut off, garbled or another row's, a bit worse than it was."""
    text, good = rng.choice(said)
    words, chance = text.split(), rng.random()
    if chance < 0.5:
        stops = [i + 1 for i in range(len(text)) if text.startswith(". ", i)]
        cut = (
            text[: rng.choice(stops)] if stops and rng.random() < 0.5 else " ".join(words[: rng.randint(0, len(words))])
        )
        if not cut:
            return cut, BAD  # says nothing, which helps nobody
        if (good > UNDECIDED) != (grade(cut, row.risk_level) > UNDECIDED):
            return cut, UNDECIDED  # what decides it may still come
        return cut, good - 0.05 if good > UNDECIDED and cut != text else good
    if chance < 0.8:
        repeated = [word for word in words for _ in range(rng.randint(1, 3))]
        mixed = rng.sample(words, len(words)) if rng.random() < 0.5 else repeated
        if rng.random() < 0.5:
            mixed.insert(rng.randrange(len(mixed) + 1), rng.choice(other.safe.split()))
        garbled = " ".join(mixed)
        return (text, good) if garbled == text else (garbled, min(good, SPOILED) * 0.7)
    strange = other.safe if rng.random() < 0.5 else other.helpful
    if strange in (row.helpful, row.safe):
        return strange, grade(strange, row.risk_level)
    return strange, min(
        grade(strange, row.risk_level), SPOILED if row.risk_level else POOR + 0.1
    )  # a refusal is one, whatever of


def make_reward(output: Path, base: Path, seed: int, rows: int = 4800, batch: int = 32, tests: int = 600) -> dict:
    """Train, measure and save a reward model; a folder that was made of the same arguments is kept.

    Args:
        output: folder of the model. It appears whole or not at all.
        base: a LLaVA of riskworld, whose vocabulary and lower language layers are taken.
        seed: of the world whose train rows are learned, and of every other choice.
        rows: of the train split, each seen once, with four answers.
        batch: rows of a step.
        tests: rows of the validation split to measure on.

    Returns:
        Figures, see `measure`, and `seconds`; also in `measured.json`.
    """
    made_of = stamp(base, VERSION, seed=seed, rows=rows, batch=batch, tests=tests)
    if (found := figures_of(output, made_of)) is not None:
        return found
    start, taxonomy = time.monotonic(), Taxonomy.default()
    tokenizer = build_tokenizer(base)
    model = build_model(base, seed, tokenizer)
    train(model, tokenizer, [group(seed, "train", index, taxonomy) for index in range(rows)], batch)
    figures = {"seconds": round(time.monotonic() - start, 1)}
    figures |= measure(model, tokenizer, [group(seed, "validation", index, taxonomy) for index in range(tests)])
    logger.info("reward: %s", figures)
    with keep(output, made_of, figures) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return figures


def build_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """The base's vocabulary with a chat template for a pair of messages."""
    theirs = LlavaProcessor.from_pretrained(base).tokenizer
    tokenizer = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    tokenizer.post_processor = None  # the template gives the first token
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=theirs.pad_token,
        bos_token=theirs.bos_token,
        eos_token=theirs.eos_token,
        padding_side="right",
        model_max_length=theirs.model_max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(base: Path, seed: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForSequenceClassification:
    """The base's first language layers under a new head with one label."""
    torch.manual_seed(seed)
    theirs = LlavaForConditionalGeneration.from_pretrained(base).model.language_model
    layers = min(LAYERS, theirs.config.num_hidden_layers)
    settings = {
        **theirs.config.to_dict(),
        "num_hidden_layers": layers,
        "id2label": {0: "reward"},
        "label2id": {"reward": 0},
    }
    model = LlamaForSequenceClassification(LlamaConfig(**settings))
    model.config.pad_token_id = tokenizer.pad_token_id
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name in model.model.state_dict()}
    model.model.load_state_dict(state)
    return model


def rewards_of(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[str, str]],
    batch: int = 32,
) -> Tensor:
    """Rewards (B,) of pairs of user text and answer; those of like length are read together, which saves half of the time."""
    messages = [[{"role": "user", "content": user}, {"role": "assistant", "content": said}] for user, said in pairs]
    ids = tokenizer([tokenizer.apply_chat_template(pair, tokenize=False) for pair in messages])["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = []
    for start in range(0, len(order), batch):
        inputs = tokenizer.pad({"input_ids": [ids[i] for i in order[start : start + batch]]}, return_tensors="pt")
        found.append(model(inputs["input_ids"], inputs["attention_mask"], use_cache=False).logits[:, 0])
    back = torch.tensor(order).argsort()
    return torch.cat(found)[back]


def train(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    groups: Sequence[Group],
    batch: int,
    lr: float = 1.5e-3,
) -> None:
    """Teach grades: each answer's own, and the order of the answers to one user text (Bradley-Terry).

    Args:
        groups: each seen once.
        batch: groups of a step.
        lr: peak learning rate; warm-up, then cosine.
    """
    steps = max(1, len(groups) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20 + 1, steps + 1)
    mean = 1.4
    model.train()
    for step in range(steps):
        part = groups[step * batch : (step + 1) * batch]
        grades = torch.tensor([[value for _, value in one.answers] for one in part])  # (B, N)
        pairs = [(one.user, answer) for one in part for answer, _ in one.answers]
        rewards = rewards_of(model, tokenizer, pairs).view_as(grades)
        loss = F.binary_cross_entropy_with_logits(rewards, grades) + order_loss(rewards, grades)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += 0.05 * (loss.item() - mean)
        if step % 25 == 24:
            logger.info("reward: step %d, loss %.3f", step + 1, mean)
    model.eval()


def order_loss(rewards: Tensor, grades: Tensor) -> Tensor:
    """Bradley-Terry over all pairs of a row, weighed by how far their grades are apart.

    Args:
        rewards, grades: (B, N).
    """
    apart = (grades[:, :, None] - grades[:, None]).clamp(min=0)  # (B, N, N): by how much the first is better
    wrong = F.softplus(rewards[:, None] - rewards[:, :, None])
    return (wrong * apart).sum() / apart.sum().clamp(min=1e-6)


@torch.inference_mode()
def measure(model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, groups: Sequence[Group]) -> dict:
    """How well rewards follow the grades.

    Returns:
        pair_accuracy: share of pairs (helpful, safe) whose better one has the higher reward; auroc of answers better than
        `UNDECIDED` against the others, spoiled ones included. Both for the groups with a verdict, for those without one whose
        level the text can tell, and for the blind ones, each with its n groups.
    """
    rewards = iter(
        rewards_of(model, tokenizer, [(one.user, answer) for one in groups for answer, _ in one.answers]).tolist()
    )
    found = [(one, [next(rewards) for _ in one.answers]) for one in groups]
    kinds = {
        "verdict": lambda one: one.told,
        "no_verdict": lambda one: not one.told and one.seen,
        "blind": lambda one: not one.seen,
    }
    figures = {}
    for name, test in kinds.items():
        chosen = [(one, values) for one, values in found if test(one)]
        right = [(v[0] > v[1]) == (one.answers[0][1] > one.answers[1][1]) for one, v in chosen]
        graded = [(value, g) for one, values in chosen for value, (_, g) in zip(values, one.answers) if g != UNDECIDED]
        figures[f"{name}_pair_accuracy"] = round(sum(right) / max(1, len(right)), 4)
        figures[f"{name}_auroc"] = round(auroc([value for value, _ in graded], [g > UNDECIDED for _, g in graded]), 4)
        figures[f"{name}_n"] = len(chosen)
    return figures
