"""Reading: what the head judges of a batch. Worked out where the rows are, so that no device is asked for a count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safety_modules.prompt.padding import pad

HEAD = ("first_ids", "question_ids", "question_mask", "units")


def head_inputs(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The units to judge: each picture of an exchange with each reading of its question.

    A question of several turns is read as a whole and then each turn alone, so a harmless turn cannot dilute a harmful one, and
    what is spread over turns is still seen.

    Args:
        rows: each with input_ids (T,); question_mask (T,), the number of the user's turn on its texts, from 1, and 0 elsewhere;
            tiles (n,), the pictures that the vision tower sees for each of the row's n images.

    Returns:
        first_ids (B,), the first token of each exchange; question_ids and question_mask (R, Q), the readings; units (U, 3): the
        reading, the picture among those of the whole batch or -1 where the exchange has none, and the exchange, in its order.
    """
    readings: list[Tensor] = []
    units: list[tuple[int, int, int]] = []
    pictures = 0
    for exchange, row in enumerate(rows):
        ids, turns = row["input_ids"], row["question_mask"]
        last = int(turns.max())
        marks = [turns > 0, *(turns == turn for turn in range(1, last + 1) if last > 1)]
        seen = range(pictures, pictures + int(row["tiles"].sum()))
        pictures += len(seen)
        for mark in marks:
            units += [(len(readings), picture, exchange) for picture in seen or [-1]]
            readings.append(ids[mark])
    lengths = torch.tensor([len(reading) for reading in readings])
    width = int(lengths.max())
    return {
        "first_ids": torch.stack([row["input_ids"][0] for row in rows]),
        "question_ids": torch.stack([pad(reading, width, 0, "right") for reading in readings]),
        "question_mask": torch.arange(width) < lengths.unsqueeze(1),
        "units": torch.tensor(units),
    }
