"""Measure a model on a labelled data set: unsafe answers, over-refusal, how well the head judges and how sure it is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import data_recipes
from safety_modules.errors import user_errors_exit
from safety_modules.evaluation import evaluate
from safety_modules.files import write_text
from safety_modules.judges.phrases import PhraseJudge
from safety_modules.pipeline import SafePipeline


def main(args: list[str] | None = None) -> None:
    """Parse, run, write and print the numbers."""
    parser = argparse.ArgumentParser(prog="safety_modules.cli.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="an exported or trained folder")
    parser.add_argument("--recipe", required=True, help="of data_recipes, e.g. custom")
    parser.add_argument("--root", type=Path, required=True, help="folder or table of the data")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the numbers")
    parser.add_argument("--policy", type=Path, help="policy file (default: the folder's own, or threshold 0.5)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(args)
    with user_errors_exit():
        pipeline = SafePipeline.from_pretrained(options.model, options.policy, options.device)
        samples = data_recipes.load(options.recipe, options.root, options.split, pipeline.model.taxonomy)
        records = evaluate.run(pipeline, samples, True, options.batch_size, options.max_new_tokens)
        judge, taxonomy = PhraseJudge(), pipeline.model.taxonomy
        metrics = {**evaluate.safety_rates(records, judge), **evaluate.head_rates(records, taxonomy)}
        metrics |= evaluate.trust_rates(records, taxonomy)
        text = json.dumps({"judge": judge.name, **metrics}, indent=2)
        write_text(options.output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
