"""Batch answers: rows of a JSON lines file -> answers in another, batch by batch; an interrupted run is continued."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_modules.build_stamp import check_stamp, read_stamp, write_stamp
from safety_modules.errors import UserError
from safety_modules.prompt.messages import ask
from safety_modules.sample import DataError

Answer = Callable[[Sequence[list[dict]]], list[dict]]
FindImage = Callable[[Path, object], Path]  # folder, and an image as a row names it -> path, or a DataError


@dataclass(frozen=True)
class QuestionRow:
    """One row: its messages, or why it has none.

    Attributes:
        id: the row's own, or the number of its line; "line 7" where the line cannot be read.
    """

    id: str | int
    messages: list[dict]
    error: str = ""


def read(path: Path, find_image: FindImage) -> list[QuestionRow]:
    """The rows of a file: `{"question": text, "image": path or paths}` or `{"messages": [...]}`, and perhaps an `id`.

    Images lie below the file's folder. A row that breaks a rule keeps its place, with the reason.

    Raises:
        DataError: the file cannot be read, or two rows have the same id.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; give a JSON lines file in UTF-8") from error
    lines = text.split("\n")  # str.splitlines would also split at characters that JSON allows in a text
    rows = [_row(line, number, path.parent, find_image) for number, line in enumerate(lines, start=1) if line.strip()]
    numbers: dict[str | int, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.id in numbers:
            raise DataError(f"{path}: rows {numbers[row.id]} and {number} have the same id {row.id!r}; ids must differ")
        numbers[row.id] = number
    return rows


def run(rows: Sequence[QuestionRow], output: Path, made_from: dict, answer: Answer, batch_size: int) -> Iterator[dict]:
    """Answer the rows that `output` has no line for, and append a line for each.

    Args:
        made_from: what the answers depend on; an output that was made from something else is refused.
        answer: exchanges -> one dict each; a UserError of one row becomes that row's `error`.

    Yields:
        The written lines, in the rows' order.

    Raises:
        UserError: the output was written by another run, or cannot be written; its content is not lost.
    """
    output = Path(output)
    _check_output(output, made_from)
    finished = _finished_ids(output)
    remaining = [row for row in rows if row.id not in finished]
    for start in range(0, len(remaining), batch_size):
        batch = remaining[start : start + batch_size]
        entries = [{"id": row.id, **entry} for row, entry in zip(batch, _answer_batch(batch, answer))]
        try:
            with open(output, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{output}: {error}; free space, and run the same command again to go on") from error
        yield from entries


def _answer_batch(rows: Sequence[QuestionRow], answer: Answer) -> list[dict]:
    """Each row's answer or error; where a batch fails, its rows are answered one by one."""
    valid = [row for row in rows if not row.error]
    try:
        entries = answer([row.messages for row in valid]) if valid else []
    except UserError as error:
        if len(valid) == 1:
            entries = [{"error": str(error)}]
        else:
            entries = [_answer_batch([row], answer)[0] for row in valid]
    by_id = dict(zip((row.id for row in valid), entries))
    return [{"error": row.error} if row.error else by_id[row.id] for row in rows]


def _row(line: str, number: int, folder: Path, find_image: FindImage) -> QuestionRow:
    """One line."""
    row_id: str | int = f"line {number}"  # not the number alone, which may be another row's id
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise DataError(f"is a {type(data).__name__}, not an object")
        own_id = data.get("id", number)
        if not isinstance(own_id, (str, int)) or isinstance(own_id, bool):
            raise DataError(f"id {own_id!r} must be a text or a whole number")
        row_id = own_id
        if "messages" in data:
            return QuestionRow(row_id, [_message(message, folder, find_image) for message in data["messages"]])
        question, images = data.get("question"), data.get("image") or []
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"question is {question!r}; give a text, or messages")
        images = [images] if isinstance(images, str) else images
        return QuestionRow(row_id, ask(question, [find_image(folder, image) for image in images]))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return QuestionRow(row_id, [], f"line {number}: {error}")


def _message(message: object, folder: Path, find_image: FindImage) -> dict:
    """A message whose images are paths below the folder."""
    if not isinstance(message, dict) or message.get("content") is None:
        raise DataError(f"message {message!r} has no content")
    content = message["content"]
    if isinstance(content, list):
        content = [
            {**item, "image": find_image(folder, item.get("image"))} if item.get("type") == "image" else item
            for item in content
        ]
    return {**message, "content": content}


def _check_output(output: Path, made_from: dict) -> None:
    """Note what the answers are made from beside them; refuse an output that was made from something else."""
    stamp = output.with_name(f"{output.name}.run.json")
    if not output.exists():
        write_stamp(stamp, made_from)
        output.touch()
    elif read_stamp(stamp) is None:
        raise UserError(f"{output}: exists, and {stamp.name} does not say what it was made from; name another output")
    else:
        check_stamp(stamp, made_from, output, "answers")


def _finished_ids(output: Path) -> set[str | int]:
    """Ids that have a whole line; what a killed run wrote of its last line is cut off."""
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(output, "r+b") as file:
            file.truncate(len(whole))
    ids = set()
    for number, line in enumerate(whole.split(b"\n"), start=1):
        try:
            ids |= {json.loads(line)["id"]} if line else set()
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{output}: line {number} is not an answer ({error}); correct it, or name another output"
            ) from error
    return ids
