"""Guard: rows of stored features, on which projector, head tokens and head are trained without the language model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from safety_modules.prompt.head_inputs import HeadInputs
from train.data.dataset import ExchangeDataset
from train.features.store import FeatureStore


@dataclass(frozen=True)
class Encoded:
    """A row as it is held from its first use on: a few hundred bytes.

    Attributes:
        tokens: (2, T), input_ids and question_mask, int32.
        label: risk_type and risk_level.
        keys: of its images.
        name: its place in the data.
    """

    tokens: np.ndarray
    label: tuple[int, int]
    keys: tuple[str, ...]
    name: str


class FeatureDataset(Dataset):
    """`ExchangeDataset` for the head alone: the question's tokens, and what the vision tower made of each image, computed once.

    The tower is frozen in both stages of PSA-VLM, so its output never changes; the head's losses have no part in the language
    model's, so a head that is trained alone is the same as one that is trained beside it.
    """

    def __init__(self, rows: ExchangeDataset, store: FeatureStore) -> None:
        """Args: store: has the features of all images of the rows."""
        self.rows, self.store = rows, store
        self.encoded: dict[int, Encoded] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Row with input_ids and question_mask (T,) of the first position and the question alone, its name, its labels and what
        `FeatureStore.of` gives of its images."""
        row = self.encoded.get(index)
        if row is None:
            row = self.encoded[index] = self._encode(index)
        ids, mask = torch.from_numpy(row.tokens).long()  # (T,) each
        risk_type, risk_level = row.label
        return {
            "input_ids": ids,
            "question_mask": mask,
            "risk_type": torch.tensor(risk_type),
            "risk_level": torch.tensor(risk_level),
            "row": row.name,
            **self.store.read(row.keys),
        }

    def _encode(self, index: int) -> Encoded:
        sample = self.rows.samples[index]
        row = self.rows.processor.encode(self.rows.messages(sample), row=sample.source, load_images=False)
        kept = row["question_mask"] > 0
        kept[0] = True
        tokens = torch.stack([row["input_ids"][kept], row["question_mask"][kept]]).int().numpy()  # (2, T)
        label = self.rows.label(sample)
        keys = self.store.find(sample.images)
        return Encoded(tokens, (int(label["risk_type"]), int(label["risk_level"])), keys, sample.source)


def collate_features(rows: list[dict[str, Tensor | str]]) -> dict[str, object]:
    """Rows of `FeatureDataset` -> a batch: what the head reads, the labels, the rows' names, and the features of all images, bf16."""
    labels = {name: torch.stack([row[name] for row in rows]) for name in ("risk_type", "risk_level")}
    features = torch.cat([row["features"] for row in rows])  # (N, P, V)
    return {"head_inputs": HeadInputs.of(rows), **labels, "features": features, "rows": [row["row"] for row in rows]}
