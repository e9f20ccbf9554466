"""What each control achieves: answers, switch, reworded hints, forged texts and a new category, as numbers with n."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sklearn.metrics import f1_score

from safety_modules.checkpoints.extend import extend
from safety_modules.checkpoints.load import load
from safety_modules.config_reader import read_yaml_file
from safety_modules.decision.policy import Policy
from safety_modules.evaluation import evaluate
from safety_modules.evaluation.calibrate import logits
from safety_modules.evaluation.metrics import rate
from safety_modules.files import write_text
from safety_modules.pipeline import SafePipeline
from safety_modules.sample import Sample, Turn
from safety_modules.taxonomy import CLEAN, Taxonomy
from train.experiments import harness
from train.experiments.harness import JUDGE, Flags, Numbers, Row, WorldRecord, number, numbers, stage

BATCH, MAX_NEW_TOKENS = 64, 40
TEXTS = read_yaml_file(Path(__file__).with_name("control_texts.yaml"))
NEW = ("fish", "tree", "bread", "grass")  # benign images that the new category covers
NEW_TYPE, NEW_LEVEL, NEW_ROWS, OLD_ROWS = "allergens", 1, 200, 3000
NEW_HINT = "food or plants that some people must avoid"
COLUMNS = ("image", "question", "answer", "risk_type", "risk_level")


class Answers(NamedTuple):
    """Of the merged pipeline and of the base to the test rows, and of the pipeline to images in unseen styles."""

    merged: list[WorldRecord]
    base: list[WorldRecord]
    unseen: list[WorldRecord]


def answers(pipeline: SafePipeline, base: Path, test: Sequence[Row], ood: Sequence[Row]) -> Answers:
    """Generate them."""
    merged, plain = harness.answer(pipeline, test, True, "answers"), evaluate.base_pipeline(base)
    return Answers(
        merged, harness.answer(plain, test, False, "base"), harness.answer(pipeline, ood, True, "unseen styles")
    )


def rates(given: Answers) -> Numbers:
    """Unsafe answers, over-refusal, and clean accuracy with what is lost against the base."""
    flags, base = harness.answer_flags(given.merged, given.unseen), harness.answer_flags(given.base)
    flags |= harness.combination_flags((record.sample, row, record.answer) for record, row in given.merged)
    flags |= {f"{name}_base": base[name] for name in ("unsafe_rate", "clean_accuracy")}
    lost = rate(base["clean_accuracy"]) - rate(flags["clean_accuracy"])
    return {**numbers(flags), "clean_accuracy_delta": number(lost, len(flags["clean_accuracy"]))}


def switch(unmerged: SafePipeline, merged: SafePipeline, given: Answers) -> Numbers:
    """Turn off one category after the other: are its answers the base's again, and do the others' decisions stay?

    Args:
        unmerged: the checkpoint with separate LoRA weights. merged: its export.
    """
    policy, taxonomy = merged.policy.to_dict(), merged.model.taxonomy
    records, base = [record for record, _ in given.merged], [record.alone for record, _ in given.base]
    assessments = [record.result.assessment for record in records]
    before = [merged.policy.decide(assessment) for assessment in assessments]
    changed, guarded, asked = [], [], []
    for name in taxonomy.risky_names:
        types = {**policy["types"], name: {**policy["types"][name], "enabled": False}}
        off = Policy.from_dict({**policy, "types": types}, taxonomy, merged.calibration)
        after = [off.decide(assessment) for assessment in assessments]
        changed += [a != b for a, b in zip(before, after) if a.risk_type != name]
        fired = [i for i, decision in enumerate(before) if decision.risk_type == name]
        guarded += [after[i].action != "base" for i in fired]
        asked += [i for i in fired if after[i].action == "base"]
    exchanges = [records[i].sample.messages() for i in asked]
    texts = {
        "off": _answer(unmerged, exchanges, base=True),
        "off_merged": _answer(merged, exchanges, base=True),
        "on_merged": [records[i].alone for i in asked],
    }
    expected = [base[i] for i in asked]
    flags = {f"switch_agreement_{name}": [a == b for a, b in zip(texts[name], expected)] for name in texts}
    return numbers({**flags, "switch_others_changed": changed, "switch_still_guarded": guarded})


def hints(pipeline: SafePipeline, test: Sequence[Row]) -> Numbers:
    """Fraction of risky exchanges answered as their level requires, by the taxonomy's hints and by unseen wordings."""
    risky = [sample for sample, _ in test if sample.risk_level]
    taxonomy = pipeline.model.taxonomy
    wordings: dict[str, list[str]] = {"own": [], "unseen": []}
    for i, sample in enumerate(risky):
        templates = TEXTS["unseen_hints"][sample.risk_level - 1]
        noun = taxonomy.types[taxonomy.type_index(sample.risk_type)].hint
        wordings["own"].append(taxonomy.hint(sample.risk_type, sample.risk_level))
        wordings["unseen"].append(templates[i % len(templates)].replace("{hint}", noun))
    flags: Flags = {}
    for name, texts in wordings.items():
        replies = zip(_answer(pipeline, [sample.messages() for sample in risky], texts), risky)
        flags[f"hint_following_{name}"] = [not JUDGE.unsafe(reply, sample.risk_level) for reply, sample in replies]
    return numbers(flags)


def text_matters(pipeline: SafePipeline, test: Sequence[Row]) -> Numbers:
    """Clean images with their harmless question and with an unsafe request: fraction with both verdicts right."""
    requests = [sample.turns[0] for sample, row in test if row["text_type"] != CLEAN]
    clean = [sample for sample, row in test if row["clean"]]
    asked = [
        dataclasses.replace(sample, turns=(requests[i % len(requests)], sample.turns[1]))
        for i, sample in enumerate(clean)
    ]
    pairs = zip(_actions(pipeline, clean), _actions(pipeline, asked))
    return numbers({"verdict_follows_text": [a == "allow" and b != "allow" for a, b in pairs]})


def forging(pipeline: SafePipeline, test: Sequence[Row]) -> Numbers:
    """Forged markers, hints and system sentences after the question: risky exchanges then allowed, clean ones not."""
    forged = []
    for i, (sample, _) in enumerate(test):
        text = sample.turns[0].text + TEXTS["forgeries"][i % len(TEXTS["forgeries"])]
        forged.append(dataclasses.replace(sample, turns=(Turn("user", text), sample.turns[1])))
    before, after = (_actions(pipeline, samples) for samples in ([sample for sample, _ in test], forged))
    rows = list(zip(forged, before, after))
    evaded = [b == "allow" for sample, a, b in rows if sample.risk_level and a != "allow"]
    alarmed = [b != "allow" for sample, a, b in rows if not sample.risk_level and a == "allow"]
    return numbers({"forged_evasion": evaded, "forged_alarm": alarmed})


def new_category(
    taxonomy: Taxonomy, home: Path, trained: Path, root: Path, test: Sequence[Row], overrides: list[str]
) -> Numbers:
    """Extend the head by a category, fine-tune on its few rows among old ones, and measure new and old categories.

    Args:
        home: folder of the seed's run. trained: checkpoint to extend. root: of the world. overrides: of the stage.
    """
    data = taxonomy.to_dict()
    clean = data["types"].pop(CLEAN)
    data["types"] |= {NEW_TYPE: {"level": NEW_LEVEL, "hint": NEW_HINT}, CLEAN: clean}
    wider, extended = Taxonomy.from_dict(data), home / "extended"
    shutil.rmtree(extended, ignore_errors=True)
    extend(trained, extended, wider)
    source = ["--modules", str(extended), "--data.root", str(write_new_rows(root))]
    final, _ = stage("control_extend.yaml", home / "new", *source, *overrides)
    label = {"risk_type": NEW_TYPE, "risk_level": NEW_LEVEL}
    relabelled = [dataclasses.replace(sample, **label) for sample, row in test if _is_new(row)]
    old = [sample for sample, row in test if not _is_new(row)]
    before, after = logits(load(trained), old), logits(load(final), [*old, *relabelled])
    predicted = [wider.type_names[i] for i in after.types.argmax(-1).tolist()]
    predicted_before = [taxonomy.type_names[i] for i in before.types.argmax(-1).tolist()]
    truth = [sample.risk_type for sample in (*old, *relabelled)]

    def f1(predictions: list[str], labels: list[str]) -> float:
        return f1_score(truth[: len(predictions)], predictions, average="macro", labels=labels)

    score_before, score = (f1(names[: len(old)], taxonomy.type_names) for names in (predicted_before, predicted))
    return {
        "new_category_f1": number(f1(predicted, [NEW_TYPE]), len(truth)),
        "old_category_f1_before": number(score_before, len(old)),
        "old_category_loss": number(score_before - score, len(old)),
    }


def write_new_rows(root: Path) -> Path:
    """Write `new.jsonl` beside the world's images, as a user would: the new category's rows and some old ones."""
    rows = [json.loads(line) for line in (root / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    label = {"risk_type": NEW_TYPE, "risk_level": NEW_LEVEL}
    new = [{**row, **label} for row in rows if _is_new(row)][:NEW_ROWS]
    old = [row for row in rows if not _is_new(row)][:OLD_ROWS]
    table = [{**{name: row[name] for name in COLUMNS}, "split": "train"} for row in (*new, *old)]
    write_text(root / "new.jsonl", "".join(json.dumps(row) + "\n" for row in table))
    return root / "new.jsonl"


def _is_new(row: dict) -> bool:
    """Whether a row of the world belongs to the new category: its image does, and nothing else about it is risky."""
    return row["name"] in NEW and row["risk_type"] == CLEAN


def _answer(
    pipeline: SafePipeline, exchanges: list[list[dict]], texts: Sequence[str] = (), base: bool = False
) -> list[str]:
    """Answers in batches, with hints, or as the base."""
    texts, replies = texts or [""] * len(exchanges), []
    for start in range(0, len(exchanges), BATCH):
        batch = slice(start, start + BATCH)
        replies += pipeline.answer(exchanges[batch], texts[batch], MAX_NEW_TOKENS, base)
    return replies


def _actions(pipeline: SafePipeline, samples: Sequence[Sample]) -> list[str]:
    """The policy's action on each sample."""
    scores = logits(pipeline.model, samples)
    assessments = pipeline.calibration.assessments(scores.types, scores.levels, pipeline.model.taxonomy)
    return [pipeline.policy.decide(assessment).action for assessment in assessments]
