"""Judge images: files or folders -> one JSON line for each image, and a table of the categories."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from tqdm import tqdm

from safety_modules.cli import options as common
from safety_modules.errors import UserError
from safety_modules.files import write_text
from safety_modules.prompt.images import SUFFIXES, ImageError
from safety_modules.prompt.messages import QUESTION
from safety_modules.tables import terminal_table

if TYPE_CHECKING:
    from safety_modules.pipeline import SafePipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("model", type=Path, help="an exported or trained folder")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders that are searched for them")
    parser.add_argument("--output", type=Path, required=True, help="the JSON lines file")
    parser.add_argument("--question", default=QUESTION, help="what the user asks about each image (%(default)s)")
    parser.add_argument("--skip-unreadable", action="store_true", help="write a row with the error and go on")
    common.add_policy(parser)
    common.add_compute(parser, batch_size=16)


def run(options: argparse.Namespace) -> None:
    """Judge, write, print."""
    files = find_images(options.images)
    from safety_modules.pipeline import SafePipeline

    device, dtype = common.device_and_dtype(options, options.model)
    pipeline = SafePipeline.from_pretrained(options.model, options.policy, device, dtype, language_model=False)
    rows = []
    for start in tqdm(range(0, len(files), options.batch_size), desc="moderate"):
        rows += judge(pipeline, files[start : start + options.batch_size], options.question, options.skip_unreadable)
    write_text(options.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    counts = Counter((row.get("fired", "-"), row.get("action", "unreadable")) for row in rows).most_common()
    lines = [(fired, action, str(count)) for (fired, action), count in counts]
    title = f"{len(rows)} images -> {options.output}"
    Console().print(terminal_table(title, ("category", "action", "images"), lines))


def find_images(paths: list[Path]) -> list[Path]:
    """The image files among the paths and below the folders, in order."""
    files = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; check the path")
    if not files:
        raise UserError(f"no images in {', '.join(map(str, paths))}; known suffixes: {', '.join(SUFFIXES)}")
    return files


def judge(pipeline: SafePipeline, files: list[Path], question: str, skip: bool) -> list[dict]:
    """One row for each file: its assessment and the policy's action, or its error where `skip` is set."""
    from safety_modules.prompt.messages import ask

    try:
        judged = pipeline.decide([ask(question, [file]) for file in files])
    except ImageError as error:
        if not skip:
            raise
        if len(files) == 1:
            return [{"image": str(files[0]), "error": str(error)}]
        return [row for file in files for row in judge(pipeline, [file], question, skip)]
    rows = []
    for file, (assessment, decision) in zip(files, judged):
        verdict = {"action": decision.action, "fired": decision.risk_type, "fired_level": decision.risk_level}
        rows.append({"image": str(file), **assessment.to_dict(), **verdict})
    return rows
