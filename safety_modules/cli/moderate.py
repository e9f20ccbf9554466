"""Judge images: files or folders -> one JSON line for each image, and a table of the categories."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from safety_modules.errors import UserError, user_errors_exit
from safety_modules.files import write_text
from safety_modules.pipeline import QUESTION, SafePipeline, ask
from safety_modules.prompt.images import SUFFIXES, ImageError


def main(args: list[str] | None = None) -> None:
    """Parse, judge, write, print."""
    parser = argparse.ArgumentParser(prog="safety_modules.cli.moderate", description=__doc__)
    parser.add_argument("model", type=Path, help="an exported or trained folder")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders that are searched for them")
    parser.add_argument("--output", type=Path, required=True, help="the JSON lines file")
    parser.add_argument("--question", default=QUESTION, help="what the user asks of each image (default: %(default)s)")
    parser.add_argument("--policy", type=Path, help="policy file (default: the folder's own, or threshold 0.5)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="write a row with the error instead of stopping at it"
    )
    options = parser.parse_args(args)
    with user_errors_exit():
        pipeline = SafePipeline.from_pretrained(options.model, options.policy, options.device)
        files = find(options.images)
        rows = []
        for start in tqdm(range(0, len(files), options.batch_size), desc="moderate"):
            rows += judge(
                pipeline, files[start : start + options.batch_size], options.question, options.skip_unreadable
            )
        write_text(options.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    show(rows, options.output)


def find(paths: list[Path]) -> list[Path]:
    """The image files among the paths and below the folders, in order."""
    files = []
    for path in paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; check the path")
    if not files:
        raise UserError(f"no images in {', '.join(map(str, paths))}; known suffixes: {', '.join(SUFFIXES)}")
    return files


def judge(pipeline: SafePipeline, files: list[Path], question: str, skip: bool) -> list[dict]:
    """One row for each file: its assessment and the policy's action, or its error where `skip` is set."""
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


def show(rows: list[dict], output: Path) -> None:
    """A table: images by category and action."""
    table = Table(title=f"{len(rows)} images -> {output}")
    for name in ("category", "action", "images"):
        table.add_column(name)
    for (fired, action), count in Counter(
        (row.get("fired", "-"), row.get("action", "unreadable")) for row in rows
    ).most_common():
        table.add_row(fired, action, str(count))
    Console().print(table)


if __name__ == "__main__":
    main()
