"""Audit: the safety head over every image of a data set; no language model is loaded."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader
from tqdm import tqdm

from data_recipes.readers.annotations import Annotation
from safety_modules.checkpoints.format import head_digest
from safety_modules.checkpoints.load import load
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.policy import Policy
from safety_modules.errors import UserError
from safety_modules.files import write_text
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.pipeline import QUESTION, ask
from safety_modules.prompt.head_inputs import HeadInputs
from safety_modules.prompt.image_batches import ImageBatches
from safety_modules.reporting.gallery import SHOWN, Findings, Section, Tile, page, thumbnail
from safety_modules.sample import ImageSource
from safety_modules.taxonomy import CLEAN, Taxonomy

logger = logging.getLogger(__name__)

PARTS, STAMP, SCORES, SUMMARY, GALLERY = "parts", "stamp.json", "scores.parquet", "summary.json", "gallery.html"
FLUSHED = 1024  # images in one part
LOGITS = pyarrow.list_(pyarrow.float32())
SCHEMA = pyarrow.schema({"image": pyarrow.string(), "error": pyarrow.string(), "types": LOGITS, "levels": LOGITS})


@dataclass(frozen=True)
class Process:
    """One of several processes that share the images. `rank` is from 0 to `count` - 1."""

    rank: int = 0
    count: int = 1

    def share(self, names: Sequence[str]) -> list[str]:
        """The names that are this process's, whatever was done before."""
        return list(names[self.rank :: self.count])


@dataclass(frozen=True)
class Audit:
    """A checkpoint's head, and where its scores go.

    Attributes:
        folder: what training or export wrote.
        output: folder of the results. What lies there of an earlier run with the same checkpoint and data is taken.
        question: that each image is judged with.
    """

    folder: Path
    output: Path
    question: str = QUESTION

    def run(
        self,
        data: Annotation,
        batch_size: int = 64,
        workers: int = 1,
        device: str = "cpu",
        process: Process | None = None,
    ) -> float:
        """Score the images that have no score yet, this process's share of them.

        Returns:
            Images per second.

        Raises:
            UserError: the output holds the scores of another checkpoint, data set or question.
        """
        process = process or Process()
        self._stamp(data, process)
        names = process.share(list(data.images))
        done = set(self.scores()["image"].to_pylist())
        left = [name for name in names if name not in done]
        if not left:
            return 0.0
        model = load(self.folder, language_model=False).to(device).eval()
        start = time.perf_counter()
        written = len(list((self.output / PARTS).glob(f"{process.rank:03d}-*.parquet")))
        held: list[dict] = []
        rows = judge(model, [data.images[name] for name in left], left, batch_size, workers, self.question)
        for row in tqdm(rows, total=len(left), desc="audit", disable=process.rank > 0):
            held.append(row)
            if len(held) == FLUSHED:
                self._write(held, f"{process.rank:03d}-{written:06d}")
                held, written = [], written + 1
        self._write(held, f"{process.rank:03d}-{written:06d}")
        return len(left) / (time.perf_counter() - start)

    def scores(self) -> pyarrow.Table:
        """All that was scored so far: image, error, and the logits of types and levels."""
        files = sorted((self.output / PARTS).glob("*.parquet"))
        return pyarrow.concat_tables([SCHEMA.empty_table(), *(parquet.read_table(file) for file in files)])

    def _stamp(self, data: Annotation, process: Process) -> None:
        """Refuse an output of something else."""
        stamp = {"checkpoint": head_digest(self.folder), "data": str(data.root), "question": self.question}
        path = self.output / STAMP
        if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8"))) != stamp:
            raise UserError(
                f"{self.output}: holds the scores of {found}, this is {stamp}; name another output, or delete it"
            )
        if process.rank == 0:
            write_text(path, json.dumps(stamp))

    def _write(self, rows: Sequence[dict], name: str) -> None:
        """A part, whole or not at all: a process may be killed at any time."""
        if not rows:
            return
        path = self.output / PARTS / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), SCHEMA), work := path.with_suffix(".partial"))
        work.replace(path)


@torch.inference_mode()
def judge(
    model: SafeVLM, images: Sequence[ImageSource], names: Sequence[str], batch_size: int, workers: int, question: str
) -> Iterator[dict]:
    """For each image its name, the error that kept it from being read or "", and the head's logits of types and levels.

    Args:
        batch_size: images in one pass of the tower.
        workers: processes that read images beside this one; 0 for none.
    """
    prompt = model.processor.encode(ask(question, [None]), load_images=False)
    loader = DataLoader(ImageBatches(model.processor, images, batch_size), batch_size=None, num_workers=workers)
    left = iter(names)
    for errors, pixels in loader:
        count = errors.count("")
        scores = None
        if count:
            tiles = torch.tensor(model.processor.tiles(count, pixels))
            batch = {"head_inputs": HeadInputs.of([{**prompt, "tiles": part} for part in tiles.split(1)]), **pixels}
            scores = model.assess(**{name: value.to(model.device) for name, value in batch.items()})
        types = iter(scores.type_logits.float().tolist() if count else ())
        levels = iter(scores.level_logits.float().tolist() if count else ())
        for error in errors:
            row = {"image": next(left), "error": error}
            yield row if error else {**row, "types": next(types), "levels": next(levels)}


def verdicts(scores: pyarrow.Table, policy: Policy, calibration: Calibration, taxonomy: Taxonomy) -> pyarrow.Table:
    """Scores -> image, error, action, risk_type, risk_level, score and the calibrated probability of each type and level."""
    good = [row for row in scores.to_pylist() if not row["error"]]
    found = iter(())
    if good:
        logits = (torch.tensor([row[name] for row in good]) for name in ("types", "levels"))
        found = iter(calibration.assessments(*logits, taxonomy))
    rows = []
    for error, image in zip(scores["error"].to_pylist(), scores["image"].to_pylist()):
        row = {"image": image, "error": error}
        if not error:
            assessment = next(found)
            decision = policy.decide(assessment)
            row |= {"action": decision.action, "risk_type": decision.risk_type, "risk_level": decision.risk_level}
            row |= {"score": max(assessment.score(name) for name in taxonomy.risky_names)}
            row |= {f"p_{name}": value for name, value in assessment.types.items()}
            row |= {f"p_level_{name}": value for name, value in zip(taxonomy.level_names, assessment.levels)}
        rows.append(row)
    return pyarrow.Table.from_pylist(rows, _verdict_schema(taxonomy))


def gallery(data: Annotation, table: pyarrow.Table, facts: Sequence[tuple[str, str]]) -> str:
    """A page with the images of the highest scores in each type, blurred, and clean ones; and what could not be read."""
    rows = sorted((row for row in table.to_pylist() if not row["error"]), key=lambda row: -row["score"])
    sections = []
    for name in dict.fromkeys(row["risk_type"] for row in rows):
        found = [row for row in rows if row["risk_type"] == name]
        tiles = [_tile(data.images[row["image"]], row) for row in found[:SHOWN] if row["image"] in data.images]
        sections.append(Section(name, len(found), tiles))
    broken = [(row["image"], row["error"]) for row in table.to_pylist() if row["error"]]
    faults = [(f"row {place + 1}", fault) for place, fault in data.faults.items()]
    return page(
        f"Audit of {data.root}",
        facts,
        sections,
        [Findings("Unreadable images", broken), Findings("Faulty rows", faults)],
    )


def _tile(image: ImageSource, row: dict) -> Tile:
    lines = (
        ("score", f"{row['score']:.3f}"),
        ("level", str(row["risk_level"])),
        ("does", row["action"]),
        ("image", row["image"]),
    )
    return Tile(thumbnail([image]), row["risk_type"] != CLEAN, lines)


def kept_rows(data: Annotation, table: pyarrow.Table) -> np.ndarray:
    """(rows,) True of the rows none of whose images is unreadable, or makes the policy do anything."""
    bad = {image for image, action in zip(table["image"].to_pylist(), table["action"].to_pylist()) if action != "allow"}
    return np.array(
        [place not in data.faults and not bad.intersection(names) for place, names in enumerate(data.rows)], bool
    )


def summary(data: Annotation, table: pyarrow.Table, kept: np.ndarray) -> dict:
    """Images by what the policy does about them, unreadable ones, and rows that are kept."""
    fired = table.group_by(["risk_type", "risk_level", "action"]).aggregate([("image", "count")]).to_pylist()
    by_type = [
        {name: row[name] for name in ("risk_type", "risk_level", "action")} | {"images": row["image_count"]}
        for row in sorted(fired, key=lambda row: -row["image_count"])
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
    numbers = [
        "score",
        *(f"p_{name}" for name in taxonomy.type_names),
        *(f"p_level_{name}" for name in taxonomy.level_names),
    ]
    return pyarrow.schema({**texts, "risk_level": pyarrow.int64(), **{name: pyarrow.float32() for name in numbers}})
