"""Audit a data set for risky images: scores, a summary, a blurred gallery, a copy of its table without the risky rows.

On several GPUs: `torchrun --nproc_per_node 8 --no-python safety-modules audit ...`. An interrupted run is continued.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from safety_modules.cli import options as common
from safety_modules.files import write_text
from safety_modules.prompt.messages import QUESTION
from safety_modules.taxonomy import CLEAN

if TYPE_CHECKING:
    import pyarrow

    from data_recipes.readers.image_table import ImageTable

SCORES, SUMMARY, GALLERY = "scores.parquet", "summary.json", "gallery.html"
TILE_LINES = {"score": "{score:.3f}", "level": "{risk_level}", "action": "{action}", "image": "{image}"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--data", required=True, help="LLaVA JSON, table, folder, Parquet or hf://datasets/owner/name")
    parser.add_argument("--model", type=Path, required=True, help="an exported or trained folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    text = "folder that the paths of a table start at (default: the table's own)"
    parser.add_argument("--images", type=Path, help=text)
    parser.add_argument("--split", default="train", help="of a hub data set or of Parquet files (%(default)s)")
    parser.add_argument("--question", default=QUESTION, help="that each image is judged with (%(default)s)")
    text = "processes that read images, for each GPU (%(default)s)"
    parser.add_argument("--workers", type=common.whole(0), default=2, help=text)
    common.add_policy(parser)
    common.add_compute(parser, batch_size=64)


def run(options: argparse.Namespace) -> None:
    """Score the images, and let the first process write the results."""
    import torch.distributed as dist

    from data_recipes.readers.image_table import ImageTable
    from safety_modules.checkpoints.control_files import load_calibration, load_policy
    from safety_modules.checkpoints.format import read_taxonomy
    from safety_modules.evaluation import audit

    taxonomy = read_taxonomy(options.model)
    calibration = load_calibration(options.model, taxonomy)
    policy = load_policy(options.model, taxonomy, calibration, options.policy)
    data = ImageTable.read(options.data, options.split, options.images)
    device, dtype = common.device_and_dtype(options, options.model)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
    process = audit.ProcessRank(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if process.count > 1:
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # the first to end waits for the last
    scorer = audit.Audit(options.model, options.output, options.question)
    speed = scorer.run(data, options.batch_size, options.workers, device, dtype, process)
    if process.count > 1:
        dist.barrier()
    if process.rank == 0:
        verdicts = audit.verdicts(scorer.scores(), policy, calibration, taxonomy)
        kept = audit.kept_rows(data, verdicts)
        run_facts = {"images_per_second": round(speed, 1), "policy": policy.digest}
        write_results(data, verdicts, {**audit.summary(data, verdicts, kept), **run_facts}, options.output)
        print(f"kept rows: {data.copy(options.output, kept)}")
    if process.count > 1:
        dist.destroy_process_group()


def write_results(data: ImageTable, verdicts: pyarrow.Table, summary: dict, output: Path) -> None:
    """Write scores, summary and gallery; print the summary."""
    from pyarrow import parquet

    parquet.write_table(verdicts, output / SCORES)
    text = json.dumps(summary, indent=1)
    write_text(output / SUMMARY, text + "\n")
    facts = [(name.replace("_", " "), str(value)) for name, value in summary.items() if name != "by_type"]
    write_text(output / GALLERY, gallery(data, verdicts, facts))
    print(f"{text}\nscores: {output / SCORES}\ngallery: {output / GALLERY}")


def gallery(data: ImageTable, verdicts: pyarrow.Table, facts: Sequence[tuple[str, str]]) -> str:
    """A page with the images of the highest scores in each type, blurred, and clean ones; and what cannot be read."""
    from safety_modules.reporting.gallery import SHOWN, Findings, Section, Tile, page, thumbnail

    rows = verdicts.to_pylist()
    scored = sorted((row for row in rows if not row["error"]), key=lambda row: -row["score"])
    sections = []
    for risk_type in dict.fromkeys(row["risk_type"] for row in scored):
        of_type = [row for row in scored if row["risk_type"] == risk_type]
        tiles = [
            Tile(
                thumbnail([data.images[row["image"]]]),
                risk_type != CLEAN,
                tuple((name, text.format(**row)) for name, text in TILE_LINES.items()),
            )
            for row in of_type[:SHOWN]
            if row["image"] in data.images
        ]
        sections.append(Section(risk_type, len(of_type), tiles))
    unreadable = [(row["image"], row["error"]) for row in rows if row["error"]]
    faults = [(f"row {number + 1}", fault) for number, fault in data.faults.items()]
    findings = [Findings("Unreadable images", unreadable), Findings("Faulty rows", faults)]
    return page(f"Audit of {data.root}", facts, sections, findings)
