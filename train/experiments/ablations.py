"""Ablate: one part of the method changed at a time on the embedded world, and what that does to safety and usefulness."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data_recipes import riskworld
from safety_modules.checkpoints.load import load
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.policy import Decision, Policy
from safety_modules.evaluation import evaluate
from safety_modules.evaluation.calibrate import Logits, logits
from safety_modules.evaluation.metrics import head_metrics, mean_spread, rate
from safety_modules.files import write_text
from safety_modules.judges.phrases import PhraseJudge
from safety_modules.pipeline import SafePipeline, SafeResult
from safety_modules.sample import Sample
from safety_modules.taxonomy import CLEAN
from train.experiments.harness import BASE, stage, world

SHARES = (10, 30, 50, 70, 90)  # percent of clean rows
BATCH, LIMIT = 64, 40  # exchanges of a batch, tokens of an answer
JUDGE = PhraseJudge()


@dataclass(frozen=True)
class Scale:
    """How much of everything: rows of the world by split, of a training set with a chosen share of clean rows, of stage 2."""

    sizes: dict[str, int]
    shared: int
    stage2: int
    stages: tuple[str, ...] = ()  # overrides of every stage


FULL = Scale({"train": 24000, "validation": 100, "test": 1700}, 10000, 6400)
SHORT = Scale({"train": 320, "validation": 4, "test": 64}, 100, 64, ("--trainer.max_steps", "2"))  # shows that it runs
HEADS = {  # head -> overrides of the guard stage
    "default": [],
    "k0": ["--safety.head_tokens", "0", "--safety.llm_tokens", "0"],
    "k64": ["--safety.head_tokens", "64", "--safety.llm_tokens", "64"],
    "mlp": ["--safety.projector", "mlp"],
    "image": ["--safety.query", "image"],
    "paper": ["--safety.query", "paper"],
}
LANGUAGES = {  # language model -> (the head that it starts from, overrides of stage 2)
    "default": ("default", []),
    "k0": ("k0", ["--rules", json.dumps({r"base\..*lora_.*": 2e-3, r"base\..*": None, r"safety\..*": None})]),
    "k64": ("k64", []),
    "no_hints": ("default", ["--data.hint_rate", "0"]),
    "half_hints": ("default", ["--data.hint_rate", "0.5"]),
    "co_trained": (
        "default",
        [
            "--rules",
            json.dumps(
                {r"base\..*lora_.*": 2e-3, r"base\..*": None, r"safety\.llm_tokens\..*": 1e-3, r"safety\..*": 5e-4}
            ),
        ],
    ),
}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        title: what was changed.
        head: a key of HEADS, "clean_N", "co_trained" (the one that stage 2 went on training), or None: no head, no hint.
        language: a key of LANGUAGES, "clean_N", or "base": no stage 2.
    """

    title: str
    head: str | None
    language: str


ROWS = [
    Row("default: joint query, C-Abstractor, K = 8, hints in 90 %", "default", "default"),
    Row("no safety tokens (K = 0)", "k0", "k0"),
    Row("K = 64", "k64", "k64"),
    Row("language model's tokens only, no head tokens", "k0", "default"),
    Row("head tokens only, language model has none", "default", "k0"),
    Row("language model alone: tokens and stage 2, no head", None, "no_hints"),
    Row("head alone: no stage 2, the base is told hints", "default", "base"),
    Row("MLP in place of the C-Abstractor", "mlp", "default"),
    Row("query: image", "image", "default"),
    Row("query: paper", "paper", "default"),
    Row("hints never in training", "default", "no_hints"),
    Row("hints in 50 % of risky training rows", "default", "half_hints"),
    Row("head co-trained in stage 2", "co_trained", "co_trained"),
    *(
        Row(f"{share} % clean rows, {FULL.shared:,} rows in all", f"clean_{share}", f"clean_{share}")
        for share in SHARES
    ),
]
COLUMNS = {  # number -> heading
    "unsafe_safe_image_unsafe_text": "unsafe: safe image, unsafe text",
    "unsafe_unsafe_image_safe_text": "unsafe: unsafe image, safe text",
    "unsafe_unsafe_image_unsafe_text": "unsafe: both unsafe",
    "over_refusal_safe_safe": "over-refusal: both safe",
    "over_refusal_look_alikes": "over-refusal: look-alikes",
    "unsafe_alone": "unsafe: weights alone",
    "clean_accuracy": "clean accuracy",
    "type_macro_f1": "type F1",
    "level_accuracy": "level accuracy",
    "seconds": "CPU seconds",
}
PAIRS = {
    "safe_image_unsafe_text": (False, True),
    "unsafe_image_safe_text": (True, False),
    "unsafe_image_unsafe_text": (True, True),
}


class Ablation:
    """The rows of one seed. Whatever is on disk already is taken: stages, the language models' own answers, finished rows."""

    def __init__(self, output: Path, seed: int, scale: Scale) -> None:
        self.home, self.seed, self.scale = output / f"seed-{seed}", seed, scale
        self.root = world(self.home / "data", seed, scale.sizes)
        for share in SHARES:
            _share(self.root, share, scale.shared)
        self.test = list(zip(riskworld.samples(self.root, "test"), riskworld.records(self.root, "test")))

    def row(self, row: Row) -> dict:
        """Numbers of one row: trained, measured and kept in `rows/`."""
        path = self.home / "rows" / f"{row.head}-{row.language}.json"
        if not path.is_file():
            write_text(path, json.dumps({"row": row.title, "seed": self.seed, **self._measure(row)}))
        return json.loads(path.read_text(encoding="utf-8"))

    def head(self, name: str) -> tuple[Path, float]:
        """Folder of a trained head, and its seconds."""
        if name == "co_trained":
            return self.language(name)
        shared = [
            "--data.features",
            str(self.home / "features"),
            "--trainer.num_train_epochs",
            "2",
            "--data.validation",
            "[]",
        ]
        shared += ["--trainer.eval_strategy", "no"]
        return stage(
            "control_head_only.yaml", self.home / f"head-{name}", *self._data(name), *shared, *HEADS.get(name, [])
        )

    def language(self, name: str) -> tuple[Path, float]:
        """Folder of a trained language model, and its seconds with those of the head it started from."""
        head, overrides = LANGUAGES.get(name, (name, []))
        modules, before = self.head(head)
        start = ["--modules", str(modules), *self._data(name, self.scale.stage2)]
        folder, seconds = stage("control_stage2.yaml", self.home / f"language-{name}", *start, *overrides)
        return folder, before + seconds

    def alone(self, name: str) -> tuple[SafePipeline, list[str], float]:
        """A language model, its answers to the test rows without any hint (kept on disk), and its seconds."""
        if name == "base":
            folder, seconds, pipeline = self.home / "language-base", 0.0, evaluate.base_pipeline(BASE)
        else:
            folder, seconds = self.language(name)
            pipeline = SafePipeline(load(folder))
        path = folder / "answers.json"
        if not path.is_file():
            records = evaluate.run(pipeline, [sample for sample, _ in self.test], False, BATCH, LIMIT, name)
            write_text(path, json.dumps([record.alone for record in records]))
        return pipeline, json.loads(path.read_text(encoding="utf-8")), seconds

    def _data(self, name: str, limit: int | None = None) -> list[str]:
        """Overrides that name the training rows."""
        source = {"recipe": "riskworld", "split": "train", "limit": limit}
        if name.startswith("clean_"):
            source = {"recipe": "custom", "root": str(self.root / f"{name}.jsonl"), "split": "train", "limit": limit}
        named = ["--data.root", str(self.home / "data"), "--data.train", json.dumps([source])]
        return [*named, "--trainer.seed", str(self.seed), *self.scale.stages]

    def _measure(self, row: Row) -> dict:
        pipeline, alone, seconds = self.alone(row.language)
        samples = [sample for sample, _ in self.test]
        judged, numbers = [], {}
        if row.head is not None:
            folder, head_seconds = self.head(row.head)
            model = load(folder)
            found = logits(model, samples)
            numbers = _head(found)
            assessments = Calibration().assessments(found.types, found.levels, model.taxonomy)
            policy = Policy.default(model.taxonomy)
            judged = [(assessment, policy.decide(assessment)) for assessment in assessments]
            seconds = head_seconds if row.language == "base" else seconds + head_seconds * (row.head != row.language)
        results = _answers(pipeline, samples, judged, alone) if judged else alone
        return {**_rates(self.test, results, alone), **numbers, "seconds": round(seconds, 1)}


def run(output: Path, seed: int, scale: Scale = FULL, processes: int = 1) -> None:
    """All rows of one seed: heads, then language models, then what is measured of them.

    Args: processes: that share the work, with one thread each; more than one is faster than one with several threads.
    """
    ablation = Ablation(output, seed, scale)
    heads = dict.fromkeys(LANGUAGES.get(row.language, (row.language, []))[0] for row in ROWS if row.language != "base")
    heads |= dict.fromkeys(row.head for row in ROWS if row.head not in (None, "co_trained"))
    languages = dict.fromkeys(row.language for row in ROWS)
    ablation.head("default")  # alone: it makes the features that the others read
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start) as pool:
        for step, names in (("head", heads), ("alone", languages), ("row", ROWS)):
            list(pool.map(partial(_step, output, seed, scale, step), names))


def _start() -> None:
    """One thread; and loaders fork, as in a process that was not spawned."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)


def _step(output: Path, seed: int, scale: Scale, step: str, name: str | Row) -> None:
    """One head, language model or row, in a process of its own."""
    getattr(Ablation(output, seed, scale), step)(name)


def collect(output: Path) -> tuple[list[dict], str]:
    """Every finished row of every seed, in `output`/results.json as well; and the table of means and spreads, in Markdown."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("seed-*/rows/*.json"))]
    order = [row.title for row in ROWS]
    found.sort(key=lambda row: (order.index(row["row"]), row["seed"]))
    write_text(output / "results.json", json.dumps(found, indent=1) + "\n")
    lines = ["| changed | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for title in order:
        seeds = [row for row in found if row["row"] == title]
        if seeds:
            lines.append(f"| {title} | {len(seeds)} | " + " | ".join(_cell(seeds, name) for name in COLUMNS) + " |")
    return found, "\n".join(lines)


def _cell(seeds: Sequence[dict], name: str) -> str:
    """Mean ± spread over the seeds, in percent but for the seconds."""
    values = [row[name] for row in seeds if name in row]
    if not values:
        return "–"
    found = mean_spread(values)
    if name == "seconds":
        return f"{found['mean']:.0f}"
    return f"{100 * found['mean']:.1f} ± {100 * found['spread']:.1f}"


def _share(root: Path, share: int, rows: int) -> None:
    """`clean_N.jsonl` beside the world's images: N percent clean ones of so many rows, in the order of the world."""
    path = root / f"clean_{share}.jsonl"
    if path.is_file():
        return
    lines = [json.loads(line) for line in (root / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    left = {True: rows * share // 100, False: rows - rows * share // 100}
    table = []
    for row in lines:
        clean = row["risk_type"] == CLEAN
        if left[clean]:
            left[clean] -= 1
            table.append(
                {name: row[name] for name in ("image", "question", "answer", "risk_type", "risk_level")}
                | {"split": "train"}
            )
    write_text(path, "".join(json.dumps(row) + "\n" for row in table))


def _answers(
    pipeline: SafePipeline, samples: Sequence[Sample], judged: Sequence[tuple[object, Decision]], alone: Sequence[str]
) -> list[str]:
    """What a user gets: hinted answers of the language model, its own where the policy allows."""
    results: list[SafeResult] = []
    for start in range(0, len(samples), BATCH):
        part = judged[start : start + BATCH]
        known = {i: alone[start + i] for i, (_, decision) in enumerate(part) if decision.action == "allow"}
        results += pipeline.finish([s.messages() for s in samples[start : start + BATCH]], part, LIMIT, known=known)
    return [result.answer for result in results]


def _rates(test: Sequence[tuple[Sample, dict]], answers: Sequence[str], alone: Sequence[str]) -> dict[str, float]:
    """The table's rates."""
    rows = [(sample, row, answer) for (sample, row), answer in zip(test, answers)]
    rates = {}
    for name, kinds in PAIRS.items():
        chosen = [r for r in rows if (r[1]["image_level"] > 0, r[1]["text_type"] != CLEAN) == kinds and r[0].images]
        rates[f"unsafe_{name}"] = rate([JUDGE.unsafe(answer, sample.risk_level) for sample, _, answer in chosen])
    rates["over_refusal_safe_safe"] = rate([JUDGE.over_refuses(a) for s, _, a in rows if not s.risk_level and s.images])
    rates["over_refusal_look_alikes"] = rate(
        [JUDGE.over_refuses(answer) for _, row, answer in rows if row["look_alike"]]
    )
    rates["clean_accuracy"] = rate(
        [evaluate.same(answer, sample.answer) for sample, row, answer in rows if row["clean"]]
    )
    rates["unsafe_alone"] = rate([JUDGE.unsafe(a, s.risk_level) for (s, _), a in zip(test, alone) if s.risk_level])
    return {name: round(value, 5) for name, value in rates.items()}


def _head(found: Logits) -> dict[str, float]:
    """Type F1 and level accuracy of the head."""
    types, levels = (values.argmax(-1).tolist() for values in (found.types, found.levels))
    metrics = head_metrics(found.risk_type.tolist(), types, found.risk_level.tolist(), levels)
    return {name: round(metrics[name], 5) for name in ("type_macro_f1", "level_accuracy")}
