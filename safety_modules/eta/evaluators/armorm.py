"""ArmoRM: the published multi-objective reward model as a small module, loaded without its remote code.

Source: ArmoRM (arXiv 2406.12845), `RLHFlow/ArmoRM-Llama3-8B-v0.1`. Differs: the heads compute in fp32 whatever the
body's dtype; padding may be on either side; a row has the same score alone and in a batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from safety_modules.eta.evaluators.loading import load_stock, quiet, readable
from safety_modules.eta.evaluators.protocols import EtaError

ARCHITECTURE = "LlamaForRewardModelWithGating"
HEADER = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
TURN = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"  # what comes before an answer
BODY = "model."
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class HeadSizes:
    """The sizes of the heads, as the checkpoint's config names them."""

    num_objectives: int
    gating_temperature: float
    gating_hidden_dim: int
    gating_n_hidden: int

    @classmethod
    def of(cls, config: dict, folder: str | Path) -> HeadSizes:
        """The sizes that a config gives; one that it lacks is an EtaError."""
        lacking = [name for name in cls.__dataclass_fields__ if name not in config]
        if lacking:
            raise EtaError(f"{folder}/config.json lacks {', '.join(lacking)}; give a folder of an ArmoRM")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class Gating(nn.Module):
    """A prompt's hidden state -> the weight of each objective."""

    def __init__(self, width: int, heads: HeadSizes) -> None:
        super().__init__()
        widths = [width, *[heads.gating_hidden_dim] * heads.gating_n_hidden, heads.num_objectives]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = heads.gating_temperature

    def forward(self, prompt: Tensor) -> Tensor:
        """(B, D) -> (B, objectives), above 0."""
        for layer in self.layers[:-1]:
            prompt = functional.relu(layer(prompt))
        return torch.softmax(self.layers[-1](prompt) / self.temperature, dim=-1) * self.logit_scale[0]


class ArmoRM(nn.Module):
    """A Llama whose last token gives a reward for each objective and whose prompt gives the objectives' weights."""

    def __init__(self, body: LlamaModel, heads: HeadSizes, header: Sequence[int]) -> None:
        """Args: header: ids of TURN; the gate reads the hidden state at their first, where TURN occurs last."""
        super().__init__()
        self.model, self.config, self.header = body, body.config, tuple(header)
        self.config.num_labels = 1  # one score, whatever the config says of labels
        self.regression_layer = nn.Linear(body.config.hidden_size, heads.num_objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(heads.num_objectives), requires_grad=False)
        self.gating = Gating(body.config.hidden_size, heads)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype | str = "auto") -> ArmoRM:
        """Load a checkpoint in the published layout; its code is not read.

        Args:
            folder: a folder, or a hub name.
            dtype: of the body; "auto" is the config's, fp32 (30 GB) for the published one, which its authors use in
                bfloat16 (15 GB).

        Raises:
            EtaError: it cannot be loaded, or has a weight too few or too many.
        """
        with readable(folder):
            place = _local(folder)
            config = LlamaConfig.from_pretrained(place)
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
            files = _files(place)
        sizes, ids = HeadSizes.of(config.to_dict(), folder), header(tokenizer)
        with torch.device("meta"):
            expected = set(cls(LlamaModel(config), sizes, ids).state_dict())
        for fault, names in (("lacks", expected - set(files)), ("has unknown", set(files) - expected)):
            if names:
                few = ", ".join(sorted(names)[:3])
                raise EtaError(f"{folder}: {fault} weights, {len(names)}: {few}; give a whole ArmoRM, as published")
        with quiet():  # transformers would warn of the heads' weights, which are loaded below
            model = cls(load_stock(LlamaModel, place, "cpu", dtype), sizes, ids)
        state = {BODY + name: value for name, value in model.model.state_dict().items()}
        with readable(folder):
            state |= {name: _tensor(path, name).float() for name, path in files.items() if not name.startswith(BODY)}
            model.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False).to(device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Score reward prompts.

        Args:
            input_ids: (B, T). attention_mask: (B, T), 1 for tokens and 0 for padding, on either side.

        Returns:
            logits (B, 1): the reward, the higher the better.

        Raises:
            EtaError: a row has no answer's beginning, TURN.
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()  # (B, T, D)
        ends = [row.nonzero()[-1].item() for row in attention_mask]
        starts = [self._start(row, mask) for row, mask in zip(input_ids.tolist(), attention_mask.tolist())]
        rows = torch.arange(len(hidden), device=hidden.device)
        rewards = self.regression_layer(hidden[rows, ends]) @ self.reward_transform_matrix  # (B, objectives)
        score = (self.gating(hidden[rows, starts]) * rewards).sum(-1, keepdim=True)  # (B, 1)
        return SequenceClassifierOutput(logits=score)

    def _start(self, ids: list[int], mask: list[int]) -> int:
        """Where the header occurs last among a row's tokens."""
        size = len(self.header)
        for place in range(len(ids) - size, -1, -1):
            if tuple(ids[place : place + size]) == self.header and all(mask[place : place + size]):
                return place
        raise EtaError(f"a row of {sum(mask)} tokens has no {TURN!r}; give prompts in the model's own chat template")


def header(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of TURN; an EtaError where the tokenizer does not know its special tokens, as Llama 3's does."""
    unknown = [name for name in HEADER if tokenizer.convert_tokens_to_ids(name) in (None, tokenizer.unk_token_id)]
    if unknown:
        raise EtaError(
            f"the tokenizer has no token {', '.join(unknown)}; give the one that the reward model was published with"
        )
    return tokenizer.encode(TURN, add_special_tokens=False)


def is_armorm(folder: str | Path) -> bool:
    """Whether a folder's, or hub name's, config names ArmoRM's architecture.

    Raises:
        EtaError: there is no readable config.
    """
    with readable(folder):
        return ARCHITECTURE in (LlamaConfig.get_config_dict(folder)[0].get("architectures") or [])


def _local(folder: str | Path) -> Path:
    """The folder itself, or where the hub's files were put."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"]))


def _files(folder: Path) -> dict[str, Path]:
    """The name of each stored weight -> its file."""
    paths = [folder / SINGLE]
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        paths = [folder / name for name in sorted(set(index["weight_map"].values()))]
    files: dict[str, Path] = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            files |= {name: path for name in file.keys()}
    return files


def _tensor(path: Path, name: str) -> Tensor:
    """One stored weight."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
