"""Samples of a stage's recipes -> rows of tensors -> batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_recipes.core.data_config import DataConfig
from data_recipes.core.splits import hash_fraction
from safety_modules.model.losses import next_tokens
from safety_modules.prompt.images import ImageError
from safety_modules.prompt.padding import IGNORE
from safety_modules.prompt.processor import ProcessingError, SafeProcessor
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import Taxonomy
from train.data.injections import with_injection
from train.features.store import FeatureStore

CHARACTERS = 4  # in a token of English text, about: to compare lengths


class ExchangeDataset(Dataset):
    """Samples as rows of tensors, which are made when they are read."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: SafeProcessor,
        taxonomy: Taxonomy,
        config: DataConfig,
        train: bool = False,
        store: FeatureStore | None = None,
    ) -> None:
        """Make the rows of a stage.

        Args:
            train: add hints and injections at the config's rates; which row gets which depends on the row alone.
            store: features of the images, which are then not read.
        """
        self.store = store
        self.samples, self.processor, self.taxonomy = samples, processor, taxonomy
        self.max_length = config.max_length
        self.hint_rate, self.injection_rate = (config.hint_rate, config.injection_rate) if train else (0.0, 0.0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """Row of `SafeProcessor.encode` with risk_type (), risk_level () and its name, `row`.

        Raises:
            DataError: the image cannot be read or the row is too long; names the row.
        """
        sample = self.samples[index]
        hint = ""
        if sample.risk_level and hash_fraction(sample.source) < self.hint_rate:
            hints = self.taxonomy.hints(sample.risk_type, sample.risk_level)
            hint = hints[int(hash_fraction(f"wording of {sample.source}") * len(hints))]
        try:
            row = self.processor.encode(
                self.messages(sample),
                answer=sample.answer,
                hint=hint,
                max_length=self.max_length,
                row=sample.source,
                image_features=self.store.of(sample.images) if self.store else None,
            )
        except ImageError as error:
            raise DataError(f"{sample.source}: {error}") from error
        except ProcessingError as error:
            raise DataError(str(error)) from error
        return {**row, **self.label(sample), "row": sample.source}

    def messages(self, sample: Sample) -> list[dict]:
        """The chat messages of a sample, at the injection rate with an injection in the last user turn."""
        messages = sample.messages()
        if hash_fraction(f"forge {sample.source}") < self.injection_rate:
            content = messages[-1]["content"][-1]
            content["text"] = with_injection(random.Random(sample.source), content["text"], self.taxonomy)
        return messages

    def label(self, sample: Sample) -> dict[str, Tensor]:
        """risk_type () and risk_level () of a sample, as class indices."""
        indices = {"risk_type": self.taxonomy.type_index(sample.risk_type), "risk_level": sample.risk_level}
        return {name: torch.tensor(index) for name, index in indices.items()}

    def lengths(self, patches: int) -> list[tuple[int, bool]]:
        """About how many tokens each row has, and whether it has images. Args: patches: of an image."""
        sizes = ((sum(len(turn.text) for turn in sample.turns), len(sample.images)) for sample in self.samples)
        return [(characters // CHARACTERS + images * patches, images > 0) for characters, images in sizes]


@dataclass(frozen=True)
class Collator:
    """Rows -> a training batch: padded on the right, or packed.

    `labels` are the tokens to predict, `keep` the positions that do, `tokens` their number, `rows` the rows' names.
    """

    processor: SafeProcessor
    packing: bool = False

    def __call__(self, rows: list[dict[str, Tensor | str]]) -> dict[str, object]:
        """See `SafeProcessor.collate`."""
        tensors = [{name: value for name, value in row.items() if name != "row"} for row in rows]
        batch = self.processor.collate(tensors, side="packed" if self.packing else "right")
        keep, targets = next_tokens(batch["labels"])
        return {
            "risk_type": batch["risk_type"],  # first, because Trainer takes the batch's size from the first tensor
            **batch,
            "labels": targets,
            "keep": keep,
            "tokens": int((targets != IGNORE).sum()),
            "rows": [row["row"] for row in rows],
        }
