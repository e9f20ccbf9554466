"""Guard: rows of stored features, on which projector, head tokens and head are trained without the language model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data_recipes.sample import DataError, Picture
from safety_modules.images import ImageError
from safety_modules.modeling import SafeVLM
from safety_modules.pipeline import ask
from safety_modules.processing import SafeProcessor
from safety_modules.reading import head_inputs
from train.data import Exchanges

logger = logging.getLogger(__name__)

BATCH = 64  # pictures in one pass of the tower


class Features(Dataset):
    """`Exchanges` for the head alone: the question's tokens, and what the vision tower made of each picture, computed once.

    The tower is frozen in both stages of PSA-VLM, so its output never changes; the head's losses have no part in the language
    model's, so a head that is trained alone is the same as one that is trained beside it.
    """

    def __init__(self, rows: Exchanges, model: SafeVLM, folder: str | Path | None = None) -> None:
        """Args: folder: where the features are kept for further runs (bfloat16), or None to keep them in memory."""
        self.rows = rows
        pictures = list(dict.fromkeys(image for sample in rows.samples for image in sample.images))
        store = _stored(model, pictures, Path(folder) if folder else None)
        self.features, self.sizes = store["features"], store.get("sizes")  # (N, P, V), (pictures, 2)
        ends = store["tiles"].cumsum(0)
        self.place = {
            path: (i, int(end - tiles), int(end)) for i, (path, end, tiles) in enumerate(zip(pictures, ends, store["tiles"]))
        }
        self.encoded: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Row with input_ids and question_mask (T,) of the first position and the question alone, features (n, P, V), labels."""
        if index not in self.encoded:
            self.encoded[index] = self._encode(index)
        places = [self.place[image] for image in self.rows.samples[index].images]
        parts = [self.features[start:end] for _, start, end in places]
        row = {**self.encoded[index], "features": torch.cat([self.features[:0], *parts])}
        return {**row, "tiles": torch.tensor([end - start for _, start, end in places], dtype=torch.long)}

    def _encode(self, index: int) -> dict[str, Tensor]:
        sample = self.rows.samples[index]
        row = self.rows.processor.encode(self.rows.messages(sample), row=sample.source, pictures=False)
        kept = row["question_mask"] > 0
        kept[0] = True
        ids = row["input_ids"][kept]
        return {
            "input_ids": ids,
            "question_mask": row["question_mask"][kept],
            **self.rows.label(sample),
            "row": sample.source,
        }


@dataclass(frozen=True)
class FeatureCollator:
    """Rows of `Features` -> a batch."""

    processor: SafeProcessor

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `SafeProcessor.collate`; `features` are those of all pictures of the batch, (N, P, V)."""
        targets = {name: torch.stack([row[name] for row in rows]) for name in ("risk_type", "risk_level")}
        pictures = torch.cat([row["features"] for row in rows])
        return {**head_inputs(rows), **targets, "features": pictures, "rows": [row["row"] for row in rows]}


def _stored(model: SafeVLM, pictures: Sequence[Picture], folder: Path | None) -> dict[str, Tensor]:
    """features (N, P, V), tiles (pictures,) of each picture and, for LLaVA-NeXT, sizes (pictures, 2): read, or made and kept."""
    path = folder / f"{_digest(model, pictures)}.safetensors" if folder else None
    if path and path.is_file():
        return load_file(path)
    made = _made(model, pictures)
    if path:
        folder.mkdir(parents=True, exist_ok=True)
        work = path.with_name(path.name + ".partial")
        save_file(made, work)
        work.replace(path)
        logger.info("features of %d pictures are kept in %s", len(pictures), path)
    return made


@torch.no_grad()
def _made(model: SafeVLM, pictures: Sequence[Picture]) -> dict[str, Tensor]:
    features, tiles, sizes = [model.features(None).to(torch.bfloat16).cpu()], [], []  # (0, P, V) to begin with
    for start in tqdm(range(0, len(pictures), BATCH), desc="features", leave=False):
        part = pictures[start : start + BATCH]
        try:
            batch = model.processor.collate([model.processor.encode(ask("", [picture])) for picture in part])
        except ImageError as error:
            raise DataError(str(error)) from error
        size = batch.get("image_sizes")
        features.append(model.features(batch["pixel_values"].to(model.device), size).to(torch.bfloat16).cpu())
        tiles += model.backbone.tiles(model.config, len(part), size)
        sizes += [] if size is None else [size]
    made = {"features": torch.cat(features), "tiles": torch.tensor(tiles, dtype=torch.long)}
    return {**made, "sizes": torch.cat(sizes)} if sizes else made


def _digest(model: SafeVLM, pictures: Sequence[Picture]) -> str:
    """Of the tower's weights and the pictures."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, value in model.base.state_dict().items():
        if "vision_tower" in name:
            digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for picture in pictures:
        digest.update(f"{_version(picture)}\n".encode())
    return digest.hexdigest()[:32]


def _version(picture: Picture) -> str:
    """A text that changes with a picture: of a file its path, size and time of change."""
    if not isinstance(picture, Path):
        return picture.version()
    found = picture.stat()
    return f"{picture.resolve()}\0{found.st_size}\0{found.st_mtime_ns}"
