"""Audit: the safety head over every image of a data set; no language model is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader
from tqdm import tqdm

from safety_modules.build_stamp import check_stamp
from safety_modules.checkpoints.format import head_digest
from safety_modules.checkpoints.load import load
from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.policy import Policy
from safety_modules.files import fresh_file
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.head_inputs import HeadInputs
from safety_modules.prompt.image_batches import ImageBatches
from safety_modules.prompt.messages import QUESTION, ask
from safety_modules.sample import ImageSource
from safety_modules.taxonomy import Taxonomy

PARTS, STAMP = "parts", "stamp.json"
ROWS_PER_PART = 1024  # images whose scores are written together
LOGITS = pyarrow.list_(pyarrow.float32())
SCHEMA = pyarrow.schema({"image": pyarrow.string(), "error": pyarrow.string(), "types": LOGITS, "levels": LOGITS})


class ImageRows(Protocol):
    """What is audited, such as `data_recipes.readers.image_table.ImageTable`."""

    @property
    def root(self) -> str | Path:
        """Place of the data."""

    @property
    def images(self) -> Mapping[str, ImageSource]:
        """Name -> image, each once."""

    @property
    def rows(self) -> Sequence[tuple[str, ...]]:
        """Names of each row's images."""

    @property
    def faults(self) -> Mapping[int, str]:
        """Number of a row that cannot be used -> why."""


@dataclass(frozen=True)
class ProcessRank:
    """One of `count` processes that divide the images among them. `rank` is from 0 to `count` - 1."""

    rank: int = 0
    count: int = 1

    def select(self, names: Sequence[str]) -> list[str]:
        """The names that this process scores; they do not depend on what is scored already."""
        return list(names[self.rank :: self.count])


@dataclass(frozen=True)
class Audit:
    """The head of a checkpoint, and where its scores are written.

    Attributes:
        folder: what training or export wrote.
        output: folder of the results. Scores that an earlier run of the same checkpoint and data wrote there are used.
        question: that each image is judged with.
    """

    folder: Path
    output: Path
    question: str = QUESTION

    def run(
        self,
        data: ImageRows,
        batch_size: int = 64,
        workers: int = 1,
        device: str = "cpu",
        dtype: str = "auto",
        process: ProcessRank | None = None,
    ) -> float:
        """Score the images of this process that have no score yet.

        Returns:
            Images per second.

        Raises:
            UserError: the output holds the scores of another checkpoint, data set or question.
        """
        process = process or ProcessRank()
        stamp = self.output / STAMP
        if process.rank == 0 or stamp.is_file():  # one process writes it, all check it
            made_from = {"checkpoint": head_digest(self.folder), "data": str(data.root), "question": self.question}
            check_stamp(stamp, made_from, self.output, "scores")
        scored = set(self.scores()["image"].to_pylist())
        names = [name for name in process.select(list(data.images)) if name not in scored]
        if not names:
            return 0.0
        model = load(self.folder, dtype=dtype, language_model=False).to(device).eval()
        start = time.perf_counter()
        part = len(list((self.output / PARTS).glob(f"{process.rank:03d}-*.parquet")))
        buffer: list[dict] = []
        rows = judge(model, [data.images[name] for name in names], names, batch_size, workers, self.question)
        for row in tqdm(rows, total=len(names), desc="audit", disable=process.rank > 0):
            buffer.append(row)
            if len(buffer) == ROWS_PER_PART:
                self._write(buffer, f"{process.rank:03d}-{part:06d}")
                buffer, part = [], part + 1
        self._write(buffer, f"{process.rank:03d}-{part:06d}")
        return len(names) / (time.perf_counter() - start)

    def scores(self) -> pyarrow.Table:
        """All scores so far: image, error, and the logits of types and levels."""
        files = sorted((self.output / PARTS).glob("*.parquet"))
        return pyarrow.concat_tables([SCHEMA.empty_table(), *(parquet.read_table(file) for file in files)])

    def _write(self, rows: Sequence[dict], name: str) -> None:
        """A part, whole or not at all: a process may be killed at any time."""
        if rows:
            with fresh_file(self.output / PARTS / f"{name}.parquet") as work:
                parquet.write_table(pyarrow.Table.from_pylist(list(rows), SCHEMA), work)


@torch.inference_mode()
def judge(
    model: SafeVLM, images: Sequence[ImageSource], names: Sequence[str], batch_size: int, workers: int, question: str
) -> Iterator[dict]:
    """Of each image its name, why it cannot be read or "", and the head's logits of types and levels.

    Args:
        batch_size: images in one pass of the vision tower.
        workers: processes that read images beside this one; 0 for none.
    """
    prompt = model.processor.encode(ask(question, [None]), load_images=False)
    loader = DataLoader(ImageBatches(model.processor, images, batch_size), batch_size=None, num_workers=workers)
    remaining = iter(names)
    for errors, pixels in loader:
        types, levels = iter(()), iter(())
        if count := errors.count(""):
            tiles = torch.tensor(model.processor.tiles(count, pixels))
            inputs = HeadInputs.of([{**prompt, "tiles": image_tiles} for image_tiles in tiles.split(1)])
            batch = {"head_inputs": inputs, **pixels}
            scores = model.assess(**{name: value.to(model.device) for name, value in batch.items()})
            types, levels = iter(scores.type_logits.float().tolist()), iter(scores.level_logits.float().tolist())
        for error in errors:
            row = {"image": next(remaining), "error": error}
            yield row if error else {**row, "types": next(types), "levels": next(levels)}


def verdicts(scores: pyarrow.Table, policy: Policy, calibration: Calibration, taxonomy: Taxonomy) -> pyarrow.Table:
    """Scores -> image, error, action, risk_type, risk_level, score, and the probability of each type and level."""
    readable = [row for row in scores.to_pylist() if not row["error"]]
    assessments: Iterator[Assessment] = iter(())
    if readable:
        types, levels = (torch.tensor([row[name] for row in readable]) for name in ("types", "levels"))
        assessments = iter(calibration.assessments(types, levels, taxonomy))
    rows = []
    for error, image in zip(scores["error"].to_pylist(), scores["image"].to_pylist()):
        row = {"image": image, "error": error}
        if not error:
            assessment = next(assessments)
            decision = policy.decide(assessment)
            row |= {"action": decision.action, "risk_type": decision.risk_type, "risk_level": decision.risk_level}
            row |= {"score": max(assessment.score(name) for name in taxonomy.risky_names)}
            row |= {f"p_{name}": value for name, value in assessment.types.items()}
            row |= {f"p_level_{name}": value for name, value in zip(taxonomy.level_names, assessment.levels)}
        rows.append(row)
    return pyarrow.Table.from_pylist(rows, _verdict_schema(taxonomy))


def kept_rows(data: ImageRows, table: pyarrow.Table) -> np.ndarray:
    """(rows,) of bool: True where the row has no fault and the policy allows each of its images.

    Args: table: as `verdicts` gives it; an unreadable image has no action.
    """
    bad = {image for image, action in zip(table["image"].to_pylist(), table["action"].to_pylist()) if action != "allow"}
    return np.array([row not in data.faults and not bad & set(names) for row, names in enumerate(data.rows)], bool)


def summary(data: ImageRows, table: pyarrow.Table, kept: np.ndarray) -> dict:
    """Images by the policy's verdict, unreadable ones, and rows that are kept."""
    groups = table.group_by(["risk_type", "risk_level", "action"]).aggregate([("image", "count")]).to_pylist()
    by_type = [
        {name: row[name] for name in ("risk_type", "risk_level", "action")} | {"images": row["image_count"]}
        for row in sorted(groups, key=lambda row: -row["image_count"])
        if row["action"]
    ]
    return {
        "data": str(data.root),
        "images": table.num_rows,
        "unreadable": sum(map(bool, table["error"].to_pylist())),
        "rows": len(data.rows),
        "rows_kept": int(kept.sum()),
        "rows_with_a_fault": len(data.faults),
        "by_type": by_type,
    }


def _verdict_schema(taxonomy: Taxonomy) -> pyarrow.Schema:
    texts = {name: pyarrow.string() for name in ("image", "error", "action", "risk_type")}
    numbers = ["score", *(f"p_{name}" for name in taxonomy.type_names)]
    numbers += [f"p_level_{name}" for name in taxonomy.level_names]
    return pyarrow.schema({**texts, "risk_level": pyarrow.int64(), **dict.fromkeys(numbers, pyarrow.float32())})
