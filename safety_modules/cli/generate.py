"""Answer a question, or a file of them: assess, decide, answer; with --eta evaluate and align."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from safety_modules.build_stamp import digest
from safety_modules.cli import options as common
from safety_modules.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("model", type=Path, help="an exported or trained folder; with --eta also a stock model's")
    parser.add_argument("question", nargs="?", help="one question; or else --rows")
    parser.add_argument("--image", type=common.file, action="append", default=[], help="an image; may be repeated")
    parser.add_argument("--rows", type=common.file, help="JSON lines of questions, with images below its folder")
    parser.add_argument("--output", type=Path, help="JSON lines of answers to --rows; an interrupted run is continued")
    parser.add_argument("--eta", type=common.file, help="ETA config file: evaluate and align answers (default: none)")
    parser.add_argument("--language", default="", help="of hints and refusals, one of the policy's (default: none)")
    parser.add_argument("--log", type=Path, help="file that each decision is appended to, a JSON line (default: none)")
    parser.add_argument("--max-new-tokens", type=common.whole(1), default=256, help="bound of an answer (%(default)s)")
    common.add_policy(parser)
    common.add_compute(parser, batch_size=8)


def run(options: argparse.Namespace) -> None:
    """Answer, print one JSON object; or write a line for each row of a file."""
    if (options.question is None) == (options.rows is None) or (options.rows is None) != (options.output is None):
        raise UserError("give a question, or --rows and --output")
    if options.rows is not None:
        return answer_file(options)
    from safety_modules.prompt.messages import ask

    (entry,) = load_answer(options)([ask(options.question, options.image)])
    print(json.dumps(entry, indent=2, ensure_ascii=False))


def answer_file(options: argparse.Namespace) -> None:
    """Answer a file of rows; print how many had which outcome."""
    from data_recipes.readers import files
    from safety_modules.eta.config_file import files_of
    from safety_modules.evaluation import batch_answers

    rows = batch_answers.read(options.rows, files.image_path)
    made_from: dict[str, object] = {
        name: str(getattr(options, name)) for name in ("model", "language", "max_new_tokens")
    }
    paths = {name: [getattr(options, name)] for name in ("model", "rows", "policy")}
    paths["eta"] = files_of(options.eta) if options.eta else []
    for name, names in paths.items():
        made_from[f"{name} files"] = [digest(path) for path in names if path and path.exists()]
    entries = batch_answers.run(rows, options.output, made_from, load_answer(options), options.batch_size)
    outcomes = Counter(outcome(entry) for entry in tqdm(entries, desc="generate"))
    print(json.dumps({"rows": len(rows), "answered_now": sum(outcomes.values()), **outcomes}))


def load_answer(options: argparse.Namespace) -> Callable[[Sequence[list[dict]]], list[dict]]:
    """Answers exchanges by a model with safety modules, its policy and perhaps ETA; or by a stock model with ETA.

    Raises:
        UserError: a stock model without ETA, or with an option of the policy.
    """
    from safety_modules.checkpoints.format import SAFETY
    from safety_modules.decision.decision_log import JsonLines
    from safety_modules.eta import StockGenerator
    from safety_modules.eta.config_file import load_eta
    from safety_modules.pipeline import SafePipeline

    model, limit = options.model, options.max_new_tokens
    has_modules = (model / SAFETY).is_dir()
    if not has_modules and (options.eta is None or options.policy or options.language or options.log):
        raise UserError(f"{model}: has no {SAFETY}/, so no policy, language or log; give --eta, and none of these")
    device, dtype = common.device_and_dtype(options, model)
    # ETA first: errors in its file are found before a large model is loaded
    if has_modules:
        pipeline: SafePipeline = SafePipeline.from_pretrained(
            model,
            options.policy,
            device,
            dtype,
            eta=load_eta(options.eta, lambda exchanges: pipeline.assess(exchanges), device) if options.eta else None,
            log=JsonLines(options.log) if options.log else None,
        )
        return lambda exchanges: [result.to_dict() for result in pipeline(exchanges, limit, options.language)]
    eta = load_eta(options.eta, None, device)
    stock = StockGenerator.from_pretrained(model, device, dtype)
    return lambda exchanges: [
        {"answer": result.answer, "eta": result.to_dict()} for result in eta(stock, exchanges, max_new_tokens=limit)
    ]


def outcome(entry: dict) -> str:
    """An error, ETA's stage or the policy's action."""
    if "error" in entry:
        return "error"
    return entry["eta"]["stage"] if "eta" in entry else entry["action"]
