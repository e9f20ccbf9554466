"""One part of the method changed at a time on the embedded world, and the effect on safety and usefulness."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from data_recipes.riskworld import BASE
from safety_modules.checkpoints.load import load
from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.policy import Policy
from safety_modules.evaluation import evaluate
from safety_modules.evaluation.calibrate import logits
from safety_modules.evaluation.evaluate import Record
from safety_modules.evaluation.metrics import head_metrics, mean_spread, rate
from safety_modules.files import write_text
from safety_modules.pipeline import SafePipeline, SafeResult
from safety_modules.tables import markdown_table
from safety_modules.taxonomy import CLEAN
from train.experiments.ablation_rows import CLEAN_PERCENTS, FULL, HEADS, LANGUAGES, ROWS, AblationRow, AblationScale
from train.experiments.harness import answer_flags, combination_flags, rows, stage, world

BATCH, MAX_NEW_TOKENS = 64, 40
COLUMNS = {  # number -> heading
    "unsafe_rate_safe_image_unsafe_text": "unsafe: safe image, unsafe text",
    "unsafe_rate_unsafe_image_safe_text": "unsafe: unsafe image, safe text",
    "unsafe_rate_unsafe_image_unsafe_text": "unsafe: both unsafe",
    "over_refusal_rate_safe_safe": "over-refusal: both safe",
    "over_refusal_rate": "over-refusal: look-alikes",
    "unsafe_rate_without_hints": "unsafe: weights alone",
    "clean_accuracy": "clean accuracy",
    "type_macro_f1": "type F1",
    "level_accuracy": "level accuracy",
    "seconds": "CPU seconds",
}


class Ablation:
    """The rows of one seed; trained stages, the language models' own answers and finished rows on disk are reused."""

    def __init__(self, output: Path, seed: int, scale: AblationScale) -> None:
        self.home, self.seed, self.scale = output / f"seed-{seed}", seed, scale
        self.root = world(self.home / "data", seed, scale.sizes)
        for percent in CLEAN_PERCENTS:
            write_clean_set(self.root, percent, scale.clean_set)
        self.test = rows(self.root, "test")
        self.samples = [sample for sample, _ in self.test]

    def row(self, row: AblationRow) -> None:
        """Train and measure one row; the numbers are written to `results/`."""
        path = self.home / "results" / row.file
        if not path.is_file():
            write_text(path, json.dumps({"row": row.title, "seed": self.seed, **self._measure(row)}))

    def head(self, name: str) -> tuple[Path, float]:
        """Folder of a trained head, and its seconds."""
        if name == "co_trained":
            return self.language(name)
        features = ["--data.features", str(self.home / "features")]
        epochs = ["--trainer.num_train_epochs", "2", "--data.validation", "[]", "--trainer.eval_strategy", "no"]
        overrides = [*self._data(name), *features, *epochs, *HEADS.get(name, [])]
        return stage("control_head_only.yaml", self.home / f"head-{name}", *overrides)

    def language(self, name: str) -> tuple[Path, float]:
        """Folder of a trained language model, and its seconds with those of the head that it started from."""
        head, overrides = LANGUAGES.get(name, (name, []))
        modules, head_seconds = self.head(head)
        overrides = ["--modules", str(modules), *self._data(name, self.scale.stage2), *overrides]
        folder, seconds = stage("control_stage2.yaml", self.home / f"language-{name}", *overrides)
        return folder, head_seconds + seconds

    def alone(self, name: str) -> tuple[SafePipeline, list[str], float]:
        """A language model, its answers to the test rows without hints, also written to disk, and its seconds."""
        if name == "base":
            folder, seconds, pipeline = self.home / "language-base", 0.0, evaluate.base_pipeline(BASE)
        else:
            folder, seconds = self.language(name)
            pipeline = SafePipeline(load(folder))
        path = folder / "answers.json"
        if not path.is_file():
            records = evaluate.run(pipeline, self.samples, False, BATCH, MAX_NEW_TOKENS, name)
            write_text(path, json.dumps([record.alone for record in records]))
        return pipeline, json.loads(path.read_text(encoding="utf-8")), seconds

    def _data(self, name: str, limit: int | None = None) -> list[str]:
        """Overrides that name the training rows."""
        source = {"recipe": "riskworld", "split": "train", "limit": limit}
        if name.startswith("clean_"):
            source |= {"recipe": "custom", "root": str(self.root / f"{name}.jsonl")}
        data = ["--data.root", str(self.home / "data"), "--data.train", json.dumps([source])]
        return [*data, "--trainer.seed", str(self.seed), *self.scale.overrides]

    def _measure(self, row: AblationRow) -> dict[str, float]:
        pipeline, alone, seconds = self.alone(row.language)
        results: list[SafeResult | None] = [None] * len(alone)
        numbers = {}
        if row.head is not None:
            folder, head_seconds = self.head(row.head)
            model = load(folder)
            scores = logits(model, self.samples)
            types, levels = (values.argmax(-1).tolist() for values in (scores.types, scores.levels))
            numbers = head_metrics(scores.risk_type.tolist(), types, scores.risk_level.tolist(), levels)
            assessments = Calibration().assessments(scores.types, scores.levels, model.taxonomy)
            results = self._answer(pipeline, assessments, Policy.default(model.taxonomy), alone)
            seconds += head_seconds if row.head != row.language else 0.0
        records = [Record(*values) for values in zip(self.samples, alone, results)]
        flags = answer_flags([(record, about) for record, (_, about) in zip(records, self.test)])
        answers = [(sample, about, record.answer) for record, (sample, about) in zip(records, self.test)]
        flags |= combination_flags(answer for answer in answers if answer[0].images)
        numbers |= {name: rate(values) for name, values in flags.items()}
        return {**{name: round(numbers[name], 5) for name in COLUMNS if name in numbers}, "seconds": round(seconds, 1)}

    def _answer(
        self, pipeline: SafePipeline, assessments: Sequence[Assessment], policy: Policy, alone: Sequence[str]
    ) -> list[SafeResult]:
        """What a user gets: the language model's answers with hints, or those without where the policy allows."""
        decided = [(assessment, policy.decide(assessment)) for assessment in assessments]
        results: list[SafeResult] = []
        for start in range(0, len(decided), BATCH):
            batch = slice(start, start + BATCH)
            allowed = [i for i, (_, decision) in enumerate(decided[batch]) if decision.action == "allow"]
            known = {i: alone[start + i] for i in allowed}
            exchanges = [sample.messages() for sample in self.samples[batch]]
            results += pipeline.finish(exchanges, decided[batch], MAX_NEW_TOKENS, known_answers=known)
        return results


def run(output: Path, seed: int, scale: AblationScale = FULL, processes: int = 1) -> None:
    """All rows of one seed: heads, then language models, then the measurements.

    Args:
        processes: that work at the same time, with one thread each: faster than one process with several threads.
    """
    ablation = Ablation(output, seed, scale)
    heads = dict.fromkeys(LANGUAGES.get(row.language, (row.language, []))[0] for row in ROWS if row.language != "base")
    heads |= dict.fromkeys(row.head for row in ROWS if row.head not in (None, "co_trained"))
    languages = dict.fromkeys(row.language for row in ROWS)
    ablation.head("default")  # first: it computes the features that the others read
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_process) as pool:
        for step, names in (("head", heads), ("alone", languages), ("row", ROWS)):
            list(pool.map(partial(_step, output, seed, scale, step), names))


def _start_process() -> None:
    """One thread; and loaders fork, as in a process that was not spawned."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)


def _step(output: Path, seed: int, scale: AblationScale, step: str, name: str | AblationRow) -> None:
    """One head, language model or row, in a process of its own; what it returns stays there."""
    getattr(Ablation(output, seed, scale), step)(name)


def collect(output: Path) -> tuple[list[dict], str]:
    """Finished rows of all seeds, also written to `output`/results.json, and a Markdown table of means and spreads."""
    results, lines = [], []
    for row in ROWS:
        paths = output.glob(f"seed-*/results/{row.file}")
        seeds = [{**json.loads(path.read_text(encoding="utf-8")), "row": row.title} for path in paths]
        results += sorted(seeds, key=lambda numbers: numbers["seed"])
        if seeds:
            lines.append([row.title, str(len(seeds)), *(_cell(seeds, name) for name in COLUMNS)])
    write_text(output / "results.json", json.dumps(results, indent=1) + "\n")
    return results, markdown_table(["changed", "seeds", *COLUMNS.values()], lines)


def _cell(seeds: Sequence[dict], name: str) -> str:
    """Mean ± spread over the seeds, in percent but for the seconds."""
    values = [row[name] for row in seeds if name in row]
    if not values:
        return "–"
    statistics = mean_spread(values)
    if name == "seconds":
        return f"{statistics['mean']:.0f}"
    return f"{100 * statistics['mean']:.1f} ± {100 * statistics['spread']:.1f}"


def write_clean_set(root: Path, percent: int, rows: int) -> None:
    """Write `clean_N.jsonl` beside the world's images: so many training rows, N percent of them clean."""
    path = root / f"clean_{percent}.jsonl"
    if path.is_file():
        return
    remaining = {True: rows * percent // 100, False: rows - rows * percent // 100}
    names, table = ("image", "question", "answer", "risk_type", "risk_level"), []
    for line in (root / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        clean = row["risk_type"] == CLEAN
        if remaining[clean]:
            remaining[clean] -= 1
            table.append({**{name: row[name] for name in names}, "split": "train"})
    write_text(path, "".join(json.dumps(row) + "\n" for row in table))
