"""Audit a data set for risky images: scores, a summary, a blurred gallery and a copy of its table without the risky rows.

On several GPUs: `torchrun --nproc_per_node 8 -m scripts.audit ...`. A run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from datetime import timedelta
from pathlib import Path

import torch
from pyarrow import parquet

from data_recipes.readers.annotations import Annotation
from safety_modules.checkpoints.control_files import load_calibration, load_policy
from safety_modules.checkpoints.format import read_taxonomy
from safety_modules.errors import user_errors_exit
from safety_modules.evaluation import audit
from safety_modules.evaluation.audit import Audit, Process
from safety_modules.files import write_text
from safety_modules.pipeline import QUESTION


def main(args: list[str] | None = None) -> None:
    """Parse, score, and let the first process write the results."""
    parser = argparse.ArgumentParser(prog="safety_modules.cli.audit", description=__doc__)
    parser.add_argument("--data", required=True, help="LLaVA JSON, table, folder, Parquet or hf://datasets/owner/name")
    parser.add_argument("--model", type=Path, required=True, help="an exported or trained folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--images", type=Path, help="folder that the paths of a table start at (default: the table's own)"
    )
    parser.add_argument("--split", default="train", help="of a hub data set or of Parquet files (default: train)")
    parser.add_argument("--policy", type=Path, help="policy file (default: the model's own, or threshold 0.5)")
    parser.add_argument("--question", default=QUESTION, help="that each image is judged with (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes that read images, for each GPU (default: 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(args)
    logging.basicConfig(format="%(message)s")
    process = Process(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if process.count > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # the first to end waits for the last
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if options.device == "cuda" else options.device
    with user_errors_exit():
        data = Annotation.of(options.data, options.split, options.images)
        run = Audit(options.model, options.output, options.question)
        speed = run.run(data, options.batch_size, options.workers, device, process)
        if process.count > 1:
            torch.distributed.barrier()
        if process.rank == 0:
            finish(run, data, options.policy, speed)
    if process.count > 1:
        torch.distributed.destroy_process_group()


def finish(run: Audit, data: Annotation, policy: Path | None, speed: float) -> None:
    """Write scores, summary, gallery and the copy; print the summary."""
    taxonomy = read_taxonomy(run.folder)
    calibration = load_calibration(run.folder, taxonomy)
    chosen = load_policy(run.folder, taxonomy, calibration, policy)
    table = audit.verdicts(run.scores(), chosen, calibration, taxonomy)
    parquet.write_table(table, run.output / audit.SCORES)
    kept = audit.kept_rows(data, table)
    found = {**audit.summary(data, table, kept), "images_per_second": round(speed, 1), "policy": chosen.digest}
    write_text(run.output / audit.SUMMARY, json.dumps(found, indent=1) + "\n")
    facts = [(name.replace("_", " "), str(value)) for name, value in found.items() if name != "by_type"]
    write_text(run.output / audit.GALLERY, audit.gallery(data, table, facts))
    copy = data.copy(run.output, kept)
    print(json.dumps(found, indent=1))
    print(f"scores: {run.output / audit.SCORES}\ngallery: {run.output / audit.GALLERY}\nkept rows: {copy}")


if __name__ == "__main__":
    main()
