"""Answers: rows of a JSON lines file -> answers in another, batch by batch; a run that was cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_recipes.readers import files
from safety_modules.checkpoints.format import SAFETY
from safety_modules.errors import UserError
from safety_modules.eta import AnswerGenerator
from safety_modules.eta.config_file import load_eta
from safety_modules.files import write_text
from safety_modules.pipeline import SafePipeline, ask
from safety_modules.sample import DataError

Answer = Callable[[Sequence[list[dict]]], list[dict]]


@dataclass(frozen=True)
class Asked:
    """One row: its own id or its line's number, "line 7" where none can be read, and what is asked, or why it cannot be."""

    id: str | int
    messages: list[dict]
    error: str = ""


def read(path: Path) -> list[Asked]:
    """The rows of a file: `{"question": text, "image": path or paths}` or `{"messages": [...]}`, and perhaps an `id`.

    Images lie below the file's folder. A row that breaks a rule keeps its place, with the reason.

    Raises:
        DataError: the file cannot be read, or two rows have the same id.
    """
    try:
        lines = (
            Path(path).read_text(encoding="utf-8-sig").split("\n")
        )  # not splitlines, which cuts at marks that JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; give a JSON lines file in UTF-8") from error
    rows = [_row(line, number, Path(path).parent) for number, line in enumerate(lines, start=1) if line.strip()]
    seen: dict[str | int, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.id in seen:
            raise DataError(
                f"{path}: rows {seen[row.id]} and {number} have the same id {row.id!r}; an id must be a row's own"
            )
        seen[row.id] = number
    return rows


def run(rows: Sequence[Asked], output: Path, about: dict, answer: Answer, batch_size: int) -> Iterator[dict]:
    """Answer the rows that `output` has no line for, and write a line for each.

    Args:
        about: what the answers depend on; an output of something else is refused.
        answer: exchanges -> one dict each; a UserError of one row becomes that row's `error`.

    Yields:
        What was written, in the rows' order.

    Raises:
        UserError: the output was written by another run, or cannot be written; what stands in it is kept.
    """
    output = Path(output)
    _stamp(output, about)
    done = _finished(output)
    left = [row for row in rows if row.id not in done]
    for start in range(0, len(left), batch_size):
        entries = [{"id": row.id, **found} for row, found in _answered(left[start : start + batch_size], answer)]
        try:
            with open(output, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{output}: {error}; make room, and give the same command again: it goes on there"
            ) from error
        yield from entries


def _answered(rows: Sequence[Asked], answer: Answer) -> list[tuple[Asked, dict]]:
    """Each row with its answer or its error; where a batch fails, its rows are asked one by one."""
    good = [row for row in rows if not row.error]
    try:
        found = dict(zip((row.id for row in good), answer([row.messages for row in good]) if good else []))
    except UserError as error:
        if len(good) == 1:
            found = {good[0].id: {"error": str(error)}}
        else:
            found = {row.id: entry for one in good for row, entry in _answered([one], answer)}
    return [(row, {"error": row.error} if row.error else found[row.id]) for row in rows]


def _row(line: str, number: int, root: Path) -> Asked:
    """One line."""
    name: str | int = f"line {number}"  # no number, which may be another row's id
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise DataError(f"is {type(data).__name__}, not an object")
        own = data.get("id", number)
        if not isinstance(own, (str, int)) or isinstance(own, bool):
            raise DataError(f"id {own!r} is no text or whole number")
        name = own
        if "messages" in data:
            return Asked(name, _rooted(data["messages"], root))
        question, images = data.get("question"), data.get("image") or []
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"question is {question!r}; give a text, or messages")
        images = [images] if isinstance(images, str) else images
        return Asked(name, ask(question, [files.image(root, image) for image in images]))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return Asked(name, [], f"line {number}: {error}")


def _rooted(messages: list[dict], root: Path) -> list[dict]:
    """Messages whose images are found below the folder."""
    rooted = []
    for message in messages:
        content = message["content"] if isinstance(message, dict) and "content" in message else None
        if isinstance(content, list):
            content = [
                {**part, "image": files.image(root, part.get("image"))} if part.get("type") == "image" else part
                for part in content
            ]
        if content is None:
            raise DataError(f"message {message!r} has no content")
        rooted.append({**message, "content": content})
    return rooted


def _stamp(output: Path, about: dict) -> None:
    """Note what the answers depend on beside them; refuse an output of something else."""
    path = output.with_name(f"{output.name}.run.json")
    if output.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{output}: exists, and {path.name} does not say what it is of; name another output"
            ) from error
        if found != about:
            changed = sorted(key for key in {*found, *about} if found.get(key) != about.get(key))
            raise UserError(
                f"{output}: holds answers of another run ({', '.join(changed)} differ); name another, or delete it"
            )
        return
    write_text(path, json.dumps(about, indent=1) + "\n")
    output.touch()


def _finished(output: Path) -> set[str | int]:
    """Ids that have a whole line; what a killed run left of a line is cut off."""
    if not output.exists():
        return set()
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(output, "r+b") as file:
            file.truncate(len(whole))
    done = set()
    for number, line in enumerate(whole.split(b"\n"), start=1):
        try:
            done |= {json.loads(line)["id"]} if line else set()
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{output}: line {number} is no answer ({error}); mend or remove that line, or name another"
            ) from error
    return done


def answerer(
    model: Path,
    eta: Path | None = None,
    policy: Path | None = None,
    language: str = "",
    device: str = "cpu",
    max_new_tokens: int = 256,
    log: Callable[[dict], None] | None = None,
) -> Answer:
    """What answers exchanges: a model with safety modules, through its policy and perhaps ETA, or a stock model with ETA.

    Raises:
        UserError: a stock model without ETA, or with what only a policy has.
    """
    if (model / SAFETY).is_dir():
        pipeline = SafePipeline.from_pretrained(model, policy, device, log=log)
        pipeline.eta = load_eta(eta, pipeline.assess, device) if eta else None
        return lambda exchanges: [result.to_dict() for result in pipeline(exchanges, max_new_tokens, language)]
    if eta is None or policy or language or log:
        raise UserError(f"{model}: has no {SAFETY}/, so no policy, language or log; give --eta, and none of these")
    system = load_eta(eta, None, device)  # first: its faults are found before a large model is loaded
    found = partial(system, AnswerGenerator.from_pretrained(model, device), max_new_tokens=max_new_tokens)
    return lambda exchanges: [{"answer": result.answer, "eta": result.to_dict()} for result in found(exchanges)]


def state(path: Path) -> str:
    """A hash of a file's content; of a folder, such as a model's, of its files' names, sizes and times."""
    if path.is_dir():
        paths = sorted(file for file in path.rglob("*") if file.is_file())
        about = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in paths]
        return hashlib.sha256(repr(about).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()
