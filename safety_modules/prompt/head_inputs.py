"""HeadInputs: what the head judges of a batch. Built on the CPU, so that no step waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safety_modules.prompt.padding import pad


@dataclass(frozen=True)
class HeadInputs:
    """The units to judge: each image of an exchange with each reading of its question.

    A question of several turns is read as a whole and then turn by turn, so a harmless turn cannot dilute a harmful
    one, and harm that is spread over turns is still seen.

    Attributes:
        first_ids: (B,), the first token of each exchange.
        question_ids: (R, Q), the readings. question_mask: (R, Q).
        units: (U, 3): reading, image (numbered over the batch, -1 where the exchange has none) and exchange, sorted by
            exchange.
    """

    first_ids: Tensor
    question_ids: Tensor
    question_mask: Tensor
    units: Tensor

    @classmethod
    def of(cls, rows: Sequence[dict[str, Tensor]]) -> HeadInputs:
        """The units of a batch.

        Args:
            rows: as `SafeProcessor.encode` returns them: input_ids (T,), question_mask (T,) and tiles (n,) are read.
        """
        readings: list[Tensor] = []
        units: list[tuple[int, int, int]] = []
        images = 0
        for exchange, row in enumerate(rows):
            ids, turns = row["input_ids"], row["question_mask"]
            last = int(turns.max())
            masks = [turns > 0, *(turns == turn for turn in range(1, last + 1) if last > 1)]
            own_images = range(images, images + int(row["tiles"].sum()))
            images += len(own_images)
            for mask in masks:
                units += [(len(readings), image, exchange) for image in own_images or [-1]]
                readings.append(ids[mask])
        lengths = torch.tensor([len(reading) for reading in readings])
        width = int(lengths.max())
        return cls(
            first_ids=torch.stack([row["input_ids"][0] for row in rows]),
            question_ids=torch.stack([pad(reading, width, 0, "right") for reading in readings]),
            question_mask=torch.arange(width) < lengths.unsqueeze(1),
            units=torch.tensor(units),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> HeadInputs:
        """The same on a device."""
        return HeadInputs(*(value.to(device, non_blocking=non_blocking) for value in vars(self).values()))

    def pin_memory(self) -> HeadInputs:
        """The same in page-locked memory; called by a DataLoader that pins."""
        return HeadInputs(*(value.pin_memory() for value in vars(self).values()))
