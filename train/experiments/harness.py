"""Experiment: what the runs on the embedded world share: worlds, stages that are not repeated, and means over seeds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_recipes import riskworld
from safety_modules.checkpoints.format import SAFETY, WEIGHTS
from safety_modules.errors import UserError
from safety_modules.evaluation.metrics import mean_spread
from safety_modules.files import write_text
from safety_modules.sample import Sample
from train.config import read_config
from train.run import FINAL, train

BASE = Path(__file__).parents[2] / "data_recipes" / "riskworld" / "base"
CONFIGS = Path(__file__).parents[1] / "configs"
RESULT = "stage.json"
BEGIN, END = "<!-- measured: written by the script -->\n", "\n<!-- end -->"


def world(folder: Path, seed: int, sizes: dict[str, int]) -> Path:
    """The riskworld of a seed in `folder`/riskworld; `folder` is a stage's `data.root`."""
    riskworld.make(folder / "riskworld", seed=seed, sizes=sizes)
    return folder / "riskworld"


def stage(config: str, output: Path, *overrides: str) -> tuple[Path, float]:
    """Train a stage, or take its result where the same one is there; a stage that was cut off goes on.

    Args:
        config: file name in train/configs.
        overrides: of the command line.

    Returns:
        The folder of the result, and the CPU seconds that its training took, loaders included; where it was cut off, of its
        last part. A clock's seconds would count what else the machine did.
    """
    args = ["--config", str(CONFIGS / config), "--output", str(output), *overrides]
    stamp = {"args": args, "files": [_digest(Path(value)) for value in args]}
    done, begun = output / RESULT, output / "begun.json"
    if done.is_file():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["stamp"] == stamp:
            return output / FINAL, found["seconds"]
    if output.exists() and not (begun.is_file() and json.loads(begun.read_text(encoding="utf-8")) == stamp):
        shutil.rmtree(output)  # of another configuration: its checkpoints are not to be gone on from
    write_text(begun, json.dumps(stamp))
    start = os.times()[:4]
    final = train(read_config(args))
    seconds = sum(os.times()[:4]) - sum(start)
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    write_text(done, json.dumps({"stamp": stamp, "seconds": seconds}))
    return final, seconds


def _digest(path: Path) -> str:
    """Of a file, or of the modules in a trained folder; empty for any other argument."""
    weights = path / SAFETY / WEIGHTS
    found = weights if weights.is_file() else path
    return hashlib.sha256(found.read_bytes()).hexdigest() if found.is_file() else ""


def rows(
    folder: Path, split: str, count: int | None = None, ood: Sequence[str] | None = None
) -> list[tuple[Sample, dict]]:
    """Samples of a world's split with their rows; only those unlike training in the ways of `ood`, where it is given."""
    pairs = list(zip(riskworld.samples(folder, split), riskworld.records(folder, split)))
    return [pair for pair in pairs if ood is None or pair[1]["ood"] in ood][:count]


def summary(runs: Iterable[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Numbers of several seeds -> their mean and spread.

    Args:
        runs: name -> {"value", "n"}, n the rows behind it, one mapping for each seed.

    Returns:
        name -> {"mean", "spread" (sample standard deviation over seeds), "seeds", "n" (rows of all seeds)}.
    """
    runs = list(runs)
    made = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        cells = [run[name] for run in runs if name in run]
        found = mean_spread([cell["value"] for cell in cells])
        made[name] = {
            "mean": round(found["mean"], 5),
            "spread": round(found["spread"], 5),
            "seeds": len(cells),
            "n": sum(cell["n"] for cell in cells),
        }
    return made


def write_table(page: Path, table: str) -> None:
    """Put a Markdown table between the two marks of a page."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{page}: has no place for the table; add the lines {BEGIN.strip()!r} and {END.strip()!r}")
    write_text(page, text.split(BEGIN)[0] + BEGIN + table + END + text.split(END)[1])


def number(value: float, n: int) -> dict[str, float]:
    """A measured number and the rows behind it."""
    return {"value": round(float(value), 5), "n": n}
