"""Measure a model on labelled rows: unsafe answers, over-refusal, and how accurate and how reliable its head is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import data_recipes
from safety_modules.cli import options as common
from safety_modules.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("model", type=Path, help="an exported or trained folder")
    common.add_rows(parser)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the numbers")
    parser.add_argument("--max-new-tokens", type=common.whole(1), default=128, help="bound of an answer (%(default)s)")
    common.add_policy(parser)
    common.add_compute(parser, batch_size=16)


def run(options: argparse.Namespace) -> None:
    """Answer every row, write and print the numbers."""
    from safety_modules.checkpoints.format import read_taxonomy
    from safety_modules.evaluation import evaluate
    from safety_modules.judges.phrases import PhraseJudge
    from safety_modules.pipeline import SafePipeline

    taxonomy, judge = read_taxonomy(options.model), PhraseJudge()
    samples = data_recipes.load(options.recipe, options.root, options.split, taxonomy)
    device, dtype = common.device_and_dtype(options, options.model)
    pipeline = SafePipeline.from_pretrained(options.model, options.policy, device, dtype)
    records = evaluate.run(pipeline, samples, True, options.batch_size, options.max_new_tokens)
    metrics = {**evaluate.safety_rates(records, judge), **evaluate.head_rates(records, taxonomy)}
    metrics |= evaluate.trust_rates(records, taxonomy)
    text = json.dumps({"judge": judge.name, **metrics}, indent=2)
    write_text(options.output, text + "\n")
    print(text)
