"""Head-only training: rows of stored features, so that the language model is not run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from safety_modules.prompt.head_inputs import HeadInputs
from train.data.dataset import ExchangeDataset
from train.features.store import FeatureStore


class EncodedRow(NamedTuple):
    """A row as it is kept after its first use: a few hundred bytes."""

    tokens: np.ndarray  # (2, T), input_ids and question_mask, int32
    risk_type: int
    risk_level: int
    keys: tuple[str, ...]  # of its images in the store
    name: str


class FeatureDataset(Dataset):
    """`ExchangeDataset` for the head alone: the question's tokens, and each image's features, which are computed once.

    PSA-VLM freezes the vision tower in both stages, so its output never changes; the head's losses do not depend on the
    language model, so a head that is trained alone is the same as one that is trained with it.
    """

    def __init__(self, rows: ExchangeDataset, store: FeatureStore) -> None:
        """Args: store: has the features of all images of the rows."""
        self.rows, self.store = rows, store
        self.encoded: dict[int, EncodedRow] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """Row with input_ids and question_mask (T,), its labels (), its name, and `FeatureStore.of` its images.

        The tokens are those of the first position and of the question.
        """
        if index not in self.encoded:
            self.encoded[index] = self._encode(index)
        row = self.encoded[index]
        ids, mask = torch.from_numpy(row.tokens).long()  # (T,) each
        labels = {"risk_type": torch.tensor(row.risk_type), "risk_level": torch.tensor(row.risk_level)}
        return {"input_ids": ids, "question_mask": mask, **labels, "row": row.name, **self.store.read(row.keys)}

    def _encode(self, index: int) -> EncodedRow:
        sample = self.rows.samples[index]
        row = self.rows.processor.encode(self.rows.messages(sample), row=sample.source, load_images=False)
        question = row["question_mask"] > 0
        question[0] = True
        tokens = torch.stack([row["input_ids"][question], row["question_mask"][question]]).int().numpy()  # (2, T)
        label = (int(value) for value in self.rows.label(sample).values())
        return EncodedRow(tokens, *label, self.store.find(sample.images), sample.source)


def collate_features(rows: list[dict[str, Tensor | str]]) -> dict[str, object]:
    """Rows of `FeatureDataset` -> a batch: head_inputs, labels (B,), all features (N, P, V), the rows' names."""
    labels = {name: torch.stack([row[name] for row in rows]) for name in ("risk_type", "risk_level")}
    features = torch.cat([row["features"] for row in rows])  # (N, P, V), bf16
    return {"head_inputs": HeadInputs.of(rows), **labels, "features": features, "rows": [row["row"] for row in rows]}
