"""Answer a question, or a file of them, through the whole pipeline: assess, decide, answer; with --eta evaluate and align."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from safety_modules.cli import batch_answers
from safety_modules.decision.decision_log import JsonLines
from safety_modules.errors import UserError, user_errors_exit
from safety_modules.eta.config_file import files_of
from safety_modules.pipeline import ask


def main(args: list[str] | None = None) -> None:
    """Parse, answer, print one JSON object; or write a line for each row of a file."""
    parser = argparse.ArgumentParser(prog="safety_modules.cli.generate", description=__doc__)
    parser.add_argument("model", type=Path, help="an exported or trained folder; with --eta also a stock model's")
    parser.add_argument("question", nargs="?", help="one question; or else --rows")
    parser.add_argument("--image", type=Path, action="append", default=[], help="an image; give it again for more")
    parser.add_argument("--rows", type=Path, help="JSON lines of questions and images; images lie below its folder")
    parser.add_argument(
        "--output", type=Path, help="JSON lines of answers to --rows; a run that was cut off goes on in it"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="rows that are answered together (default: 8)")
    parser.add_argument(
        "--eta", type=Path, help="recipe of ETA: evaluate each answer, align it where it is unsafe (default: none)"
    )
    parser.add_argument("--policy", type=Path, help="policy file (default: the folder's own, or threshold 0.5)")
    parser.add_argument(
        "--language", default="", help="of hints and refusals, one of the policy's (default: none in particular)"
    )
    parser.add_argument("--log", type=Path, help="file to append the decision to, one JSON line (default: none)")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(args)
    if (options.question is None) == (options.rows is None) or (options.rows is None) != (options.output is None):
        parser.error("give a question, or --rows and --output")
    with user_errors_exit():
        answer = batch_answers.answerer(
            options.model,
            options.eta,
            options.policy,
            options.language,
            options.device,
            options.max_new_tokens,
            JsonLines(options.log) if options.log else None,
        )
        if options.rows is None:
            print(json.dumps(answer([ask(options.question, options.image)])[0], indent=2, ensure_ascii=False))
        else:
            file(options, answer)


def file(options: argparse.Namespace, answer: batch_answers.Answer) -> None:
    """Answer a file of rows; print how many came to what."""
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size} must be 1 or more")
    rows = batch_answers.read(options.rows)
    named = {name: str(getattr(options, name)) for name in ("model", "language", "max_new_tokens")}
    files = {"model": [options.model], "rows": [options.rows], "policy": [options.policy] if options.policy else []}
    files["eta"] = files_of(options.eta) if options.eta else []
    states = {
        f"{name} files": [batch_answers.state(path) for path in paths if path.exists()] for name, paths in files.items()
    }
    found = batch_answers.run(rows, options.output, {**named, **states}, answer, options.batch_size)
    kinds = Counter(kind(entry) for entry in tqdm(found, desc="answers"))
    print(json.dumps({"rows": len(rows), "answered_now": sum(kinds.values()), **kinds}))


def kind(entry: dict) -> str:
    """What came of a row: an error, ETA's stage or the policy's action."""
    if "error" in entry:
        return "error"
    return entry["eta"]["stage"] if "eta" in entry else entry["action"]


if __name__ == "__main__":
    main()
