"""A small reward model of riskworld: ETA's post-evaluator.

It reads texts alone: question, answer, and a verdict where there is one. Vocabulary and lower layers are the base
model's own. It is saved as an ordinary sequence classification folder with one label, whose chat template takes a
user's and an assistant's message. The higher the better; 0 lies between good and bad.

Source: the role of ArmoRM in ETA (arXiv 2410.06625), which does not see the image either. Differs: one number, learned
from answers whose grade is known by construction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from safety_modules.evaluation.metrics import auroc
from safety_modules.taxonomy import Taxonomy
from train.experiments.riskworld_models.graded_answers import UNDECIDED, AnswerGroup, answer_group
from train.experiments.riskworld_models.processor import derive_tokenizer
from train.experiments.riskworld_models.training import build_once, build_optimizer_step

VERSION = 2  # raise it when the same arguments give another folder
LAYERS = 2  # of the base's language model
# The user's message holds the verdict; images are left out, and a system text goes first. The template writes the
# beginning-of-text token itself, so that the ids are the same whether it is encoded directly or as a text.
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ 'USER: ' }}{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}\
{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"""


def make_reward(output: Path, base: Path, seed: int, rows: int = 4800, batch: int = 32, tests: int = 600) -> dict:
    """Train, measure and save a reward model; a folder that was built from the same arguments is kept.

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

    def build(folder: Path) -> dict:
        start, taxonomy = time.monotonic(), Taxonomy.default()
        reward = RewardModel.build(base, seed)
        reward.train([answer_group(seed, "train", index, taxonomy) for index in range(rows)], batch)
        seconds = round(time.monotonic() - start, 1)
        groups = [answer_group(seed, "validation", index, taxonomy) for index in range(tests)]
        figures = {"seconds": seconds, **reward.measure(groups)}
        reward.model.save_pretrained(folder)
        reward.tokenizer.save_pretrained(folder)
        return figures

    return build_once(output, base, build, version=VERSION, seed=seed, rows=rows, batch=batch, tests=tests)


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier with one label and its tokenizer."""

    model: LlamaForSequenceClassification
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def build(cls, base: Path, seed: int) -> RewardModel:
        """The base's vocabulary and first language layers, with a chat template and a head that are new."""
        base_tokenizer = LlavaProcessor.from_pretrained(base).tokenizer
        backend = Tokenizer.from_str(base_tokenizer.backend_tokenizer.to_str())
        backend.post_processor = None  # the template gives the first token
        tokenizer = derive_tokenizer(base_tokenizer, backend, padding_side="right", chat_template=CHAT_TEMPLATE)
        torch.manual_seed(seed)
        language_model = LlavaForConditionalGeneration.from_pretrained(base).model.language_model
        layers = min(LAYERS, language_model.config.num_hidden_layers)
        labels = {"id2label": {0: "reward"}, "label2id": {"reward": 0}}
        config = LlamaConfig(**{**language_model.config.to_dict(), "num_hidden_layers": layers, **labels})
        model = LlamaForSequenceClassification(config)
        model.config.pad_token_id = tokenizer.pad_token_id
        names = model.model.state_dict().keys()
        model.model.load_state_dict({name: w for name, w in language_model.state_dict().items() if name in names})
        return cls(model, tokenizer)

    def rewards(self, pairs: Sequence[tuple[str, str]], batch: int = 32) -> Tensor:
        """Rewards (B,) of pairs of user text and answer; batches are of like lengths, which saves half of the time."""
        chats = [[{"role": "user", "content": user}, {"role": "assistant", "content": text}] for user, text in pairs]
        ids = self.tokenizer([self.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats])["input_ids"]
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rewards = []
        for start in range(0, len(ids), batch):
            rows = [ids[i] for i in by_length[start : start + batch]]
            inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
            rewards.append(self.model(inputs["input_ids"], inputs["attention_mask"], use_cache=False).logits[:, 0])
        return torch.cat(rewards)[torch.tensor(by_length).argsort()]

    def train(self, groups: Sequence[AnswerGroup], batch: int, lr: float = 1.5e-3) -> None:
        """Teach grades: each answer's own, and the ranking of the answers to one user text; `batch` groups a step."""
        steps = max(1, len(groups) // batch)
        parameters = self.model.train().parameters()
        optimizer_step = build_optimizer_step("reward", parameters, lr, steps + 1, warmup=steps // 20 + 1)
        for start in range(0, steps * batch, batch):
            rows = groups[start : start + batch]
            grades = torch.tensor([[grade for _, grade in group.answers] for group in rows])  # (B, N)
            rewards = self.rewards(pairs_of(rows)).view_as(grades)
            optimizer_step(F.binary_cross_entropy_with_logits(rewards, grades) + ranking_loss(rewards, grades))
        self.model.eval()

    @torch.inference_mode()
    def measure(self, groups: Sequence[AnswerGroup]) -> dict[str, float]:
        """How well rewards follow the grades.

        Returns:
            pair_accuracy: fraction of pairs (helpful, safe) whose better one has the higher reward; auroc of all
            answers with a grade above `UNDECIDED` against those below. Both for the groups with a verdict, for those
            without one whose level the text can tell, and for the blind ones, each with its n groups.
        """
        rewards = iter(self.rewards(pairs_of(groups)).tolist())
        scored = [(group, [(next(rewards), grade) for _, grade in group.answers]) for group in groups]
        subsets = {
            "verdict": [scores for group, scores in scored if group.has_verdict],
            "no_verdict": [scores for group, scores in scored if not group.has_verdict and group.text_tells],
            "blind": [scores for group, scores in scored if not group.text_tells],
        }
        figures = {}
        for name, subset in subsets.items():
            right = [(helpful[0] > safe[0]) == (helpful[1] > safe[1]) for helpful, safe, *_ in subset]
            decided = [(reward, grade) for scores in subset for reward, grade in scores if grade != UNDECIDED]
            good = [grade > UNDECIDED for _, grade in decided]
            figures[f"{name}_pair_accuracy"] = round(sum(right) / max(1, len(right)), 4)
            figures[f"{name}_auroc"] = round(auroc([reward for reward, _ in decided], good), 4)
            figures[f"{name}_n"] = len(subset)
        return figures


def pairs_of(groups: Sequence[AnswerGroup]) -> list[tuple[str, str]]:
    """User text and answer of all answers of groups."""
    return [(group.user, answer) for group in groups for answer, _ in group.answers]


def ranking_loss(rewards: Tensor, grades: Tensor) -> Tensor:
    """Bradley-Terry over all pairs of a row of (B, N), weighted by the difference of their grades."""
    better_by = (grades[:, :, None] - grades[:, None]).clamp(min=0)  # (B, N, N)
    losses = F.softplus(rewards[:, None] - rewards[:, :, None])
    return (losses * better_by).sum() / better_by.sum().clamp(min=1e-6)
