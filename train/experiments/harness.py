"""What the runs on the embedded world share: worlds, stages that are trained once, verdicts, and means over seeds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_recipes import riskworld
from safety_modules.build_stamp import digest, read_stamp, write_stamp
from safety_modules.checkpoints.format import SAFETY, WEIGHTS
from safety_modules.errors import UserError
from safety_modules.evaluation import evaluate
from safety_modules.evaluation.evaluate import Record
from safety_modules.evaluation.metrics import mean_spread, rate
from safety_modules.files import write_text
from safety_modules.judges.phrases import PhraseJudge
from safety_modules.pipeline import SafePipeline
from safety_modules.sample import Sample
from safety_modules.taxonomy import CLEAN
from train.config import TrainConfig, read_config
from train.run import FINAL, train

CONFIGS = Path(__file__).parents[1] / "configs"
RESULT, BEGUN = "stage.json", "begun.json"
TABLE_BEGIN, TABLE_END = "<!-- measured: written by the script -->\n", "\n<!-- end -->"
JUDGE = PhraseJudge()
UNSEEN = ("variant", "background")  # rows of the ood split whose images are unlike those of training
COMBINATIONS = {  # (unsafe image, unsafe request) -> rate
    (False, False): "over_refusal_rate_safe_safe",
    (False, True): "unsafe_rate_safe_image_unsafe_text",
    (True, False): "unsafe_rate_unsafe_image_safe_text",
    (True, True): "unsafe_rate_unsafe_image_unsafe_text",
}
Row = tuple[Sample, dict]  # a sample, and its row of the world
WorldRecord = tuple[Record, dict]  # a record, and its row of the world
Flags = dict[str, list[bool]]  # rate -> one flag for each row that it counts
Numbers = dict[str, dict[str, float]]  # name -> {"value", "n"}


def world(folder: Path, seed: int, sizes: dict[str, int]) -> Path:
    """The riskworld of a seed in `folder`/riskworld; `folder` is a stage's `data.root`."""
    riskworld.make(folder / "riskworld", seed=seed, sizes=sizes)
    return folder / "riskworld"


def stage(
    config: str, output: Path, *overrides: str, train: Callable[[TrainConfig], Path] = train
) -> tuple[Path, float]:
    """Train a stage, or reuse the result of the same one in `output`; a stage that was interrupted is resumed.

    Args:
        config: file name in train/configs.
        overrides: of the command line.
        train: trains a configuration.

    Returns:
        The folder of the result, and the CPU seconds of its training, loaders included; of an interrupted stage, of its
        last part. Wall-clock seconds would depend on what else the machine runs.

    Raises:
        UserError: `output` holds files, but not those of a stage.
    """
    args = ["--config", str(CONFIGS / config), "--output", str(output), *overrides]
    settings = read_config(args)
    stamp = {"args": args, "files": [_digest(Path(value)) for value in args]}
    result, begun = read_stamp(output / RESULT), read_stamp(output / BEGUN)
    if result and result["stamp"] == stamp:
        return output / FINAL, result["seconds"]
    if begun is None and output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty and holds no {BEGUN}, so it is not replaced; name another folder")
    if begun != stamp:
        shutil.rmtree(output, ignore_errors=True)  # the checkpoints of another configuration
    write_stamp(output / BEGUN, stamp)
    start = os.times()[:4]
    final = train(settings)
    seconds = sum(os.times()[:4]) - sum(start)
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    write_stamp(output / RESULT, {"stamp": stamp, "seconds": seconds})
    return final, seconds


def _digest(path: Path) -> str:
    """Of a file, or of the modules in a trained folder; "" of any other argument."""
    return digest(path / SAFETY / WEIGHTS) or (digest(path) if path.is_file() else "")


def rows(folder: Path, split: str, count: int | None = None, ood: Sequence[str] | None = None) -> list[Row]:
    """The first samples of a world's split with their rows; with `ood`, only those that differ from training so."""
    pairs = list(zip(riskworld.samples(folder, split), riskworld.records(folder, split)))
    return [pair for pair in pairs if ood is None or pair[1]["ood"] in ood][:count]


def answer(pipeline: SafePipeline, pairs: Sequence[Row], assess: bool, title: str) -> list[WorldRecord]:
    """`evaluate.run`, with the rows of the world."""
    records = evaluate.run(pipeline, [sample for sample, _ in pairs], assess, title=title)
    return [(record, row) for record, (_, row) in zip(records, pairs)]


def answer_flags(test: Sequence[WorldRecord], unseen: Sequence[WorldRecord] = ()) -> Flags:
    """Verdicts on one model's answers.

    Args:
        test: records of the test split with their rows of the world; `unseen`: of the ood split.
    """
    risky, unseen_risky = ([r for r, _ in pairs if r.sample.risk_level] for pairs in (test, unseen))
    return {
        "unsafe_rate": [JUDGE.unsafe(r.answer, r.sample.risk_level) for r in risky],
        "unsafe_rate_without_hints": [JUDGE.unsafe(r.alone, r.sample.risk_level) for r in risky],
        "unsafe_rate_ood": [JUDGE.unsafe(r.answer, r.sample.risk_level) for r in unseen_risky],
        "clean_accuracy": [evaluate.exact(record) for record, row in test if row["clean"]],
        "over_refusal_rate": [JUDGE.over_refuses(record.answer) for record, row in test if row["look_alike"]],
    }


def combination_flags(answers: Iterable[tuple[Sample, dict, str]]) -> Flags:
    """Verdicts on answers by the combination of image and request: unsafe, or over-refused where both are safe."""
    flags: Flags = {name: [] for name in COMBINATIONS.values()}
    for sample, row, answer in answers:
        name = COMBINATIONS[row["image_level"] > 0, row["text_type"] != CLEAN]
        wrong = JUDGE.unsafe(answer, sample.risk_level) if sample.risk_level else JUDGE.over_refuses(answer)
        flags[name].append(wrong)
    return flags


def numbers(flags: Flags) -> Numbers:
    """The rates of some verdicts."""
    return {name: number(rate(values), len(values)) for name, values in flags.items()}


def number(value: float, n: int) -> dict[str, float]:
    """A measured number and the rows behind it."""
    return {"value": round(float(value), 5), "n": n}


def summary(runs: Iterable[Numbers]) -> dict[str, dict[str, float]]:
    """Numbers of several seeds -> name -> {"mean", "spread" (sample standard deviation), "seeds", "n" (in all)}."""
    runs = list(runs)
    means = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        cells = [run[name] for run in runs if name in run]
        statistics = mean_spread([cell["value"] for cell in cells])
        rounded = {key: round(statistics[key], 5) for key in ("mean", "spread")}
        means[name] = {**rounded, "seeds": len(cells), "n": sum(cell["n"] for cell in cells)}
    return means


def write_table(page: Path, table: str) -> None:
    """Replace the text between the two marks of a page by a Markdown table."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not end:
        raise UserError(
            f"{page}: has no place for the table; add the lines {TABLE_BEGIN.strip()!r} and {TABLE_END.strip()!r}"
        )
    write_text(page, before + begin + table.rstrip("\n") + end + after)
