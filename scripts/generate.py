"""Answer one question about pictures through the whole pipeline: assess, decide, answer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safety_modules.errors import user_errors_exit
from safety_modules.pipeline import JsonLines, SafePipeline, ask


def main(args: list[str] | None = None) -> None:
    """Parse, answer, print one JSON object."""
    parser = argparse.ArgumentParser(prog="scripts.generate", description=__doc__)
    parser.add_argument("model", type=Path, help="an exported or trained folder")
    parser.add_argument("question")
    parser.add_argument("--image", type=Path, action="append", default=[], help="a picture; give it again for more")
    parser.add_argument("--policy", type=Path, help="policy file (default: the folder's own, or threshold 0.5)")
    parser.add_argument("--language", default="", help="of hints and refusals, one of the policy's (default: none in particular)")
    parser.add_argument("--log", type=Path, help="file to append the decision to, one JSON line (default: none)")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(args)
    with user_errors_exit():
        log = JsonLines(options.log) if options.log else None
        pipeline = SafePipeline.from_pretrained(options.model, options.policy, options.device, log=log)
        result = pipeline([ask(options.question, options.image)], options.max_new_tokens, options.language)[0]
    print(
        json.dumps(
            {"answer": result.answer, "action": result.action, **result.assessment.to_dict()}, indent=2, ensure_ascii=False
        )
    )


if __name__ == "__main__":
    main()
