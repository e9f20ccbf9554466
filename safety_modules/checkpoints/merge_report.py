"""MergeReport: what merging LoRA weights changed in the logits of a few neutral exchanges."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from safety_modules.checkpoints.format import ADAPTER, SAFETY
from safety_modules.checkpoints.load import load
from safety_modules.config_reader import parse
from safety_modules.files import write_text
from safety_modules.model.quantization import Quantization
from safety_modules.model.safe_vlm import SafeVLM

MERGE = "merge.json"  # in an export's safety/
PROBES = (  # with a plain grey image or without, question, answer
    (True, "Describe this picture in one sentence.", "It is a plain grey area without any objects in it."),
    (True, "Which colours can be seen?", "Only grey, evenly spread from edge to edge."),
    (False, "Name three kinds of fruit.", "Apples, pears and plums are three kinds of fruit."),
    (False, "How many days does a week have?", "A week has seven days, from Monday to Sunday."),
)
GREY = (128, 128, 128)


@dataclass(frozen=True)
class Difference:
    """Two models' logits on the same tokens.

    Attributes:
        max, mean: of the absolute differences.
        same: fraction of positions with the same greedy token, in [0, 1].
    """

    max: float
    mean: float
    same: float

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> Difference:
        """Args: first, second: (positions, vocabulary), float32."""
        gap = (first - second).abs()
        return cls(gap.max().item(), gap.mean().item(), (first.argmax(-1) == second.argmax(-1)).float().mean().item())


@dataclass(frozen=True)
class MergeReport:
    """Differences from the model whose adapter is not merged, but beside the weights that it was trained on.

    Attributes:
        quantization: kind of the base that the adapter was trained on, or None.
        positions: text positions compared.
        merged: the exported model.
        onto_original: the adapter on the weights before quantisation, for comparison; None without quantisation.
    """

    quantization: str | None
    positions: int
    merged: Difference
    onto_original: Difference | None

    def write(self, folder: str | Path) -> None:
        """Write `folder/safety/merge.json`."""
        write_text(Path(folder) / SAFETY / MERGE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> MergeReport | None:
        """The report of an export; None where it has none."""
        path = Path(folder) / SAFETY / MERGE
        return parse(cls, json.loads(path.read_text(encoding="utf-8")), str(path)) if path.is_file() else None

    def rows(self) -> list[tuple[str, Difference]]:
        """Titles of the models, and their differences."""
        rows = [("merged, as exported", self.merged)]
        if self.onto_original:
            rows.append((f"adapter on the weights before {self.quantization}, not exported", self.onto_original))
        return rows


@dataclass(frozen=True)
class Unmerged:
    """Logits (positions, vocabulary) before merging: as `trained`, and with the adapter on the `original` weights."""

    quantization: str | None
    trained: Tensor
    original: Tensor | None

    @classmethod
    def of(
        cls, folder: str | Path, dtype: torch.dtype | str = "auto", base: str | Path | None = None
    ) -> Unmerged | None:
        """Arguments as in `load`; None for a folder without LoRA weights. One model is in memory at a time."""
        if not (Path(folder) / ADAPTER).exists():
            return None
        model = load(folder, dtype, base, merge=False)
        quantization, trained = Quantization.of(model.base), probe(model)
        if quantization is None:
            return cls(None, trained, None)
        del model
        gc.collect()  # hooks and model reference each other, so it would stay in memory beside the next one
        original = probe(load(folder, dtype, base, merge=False, quantize=None))
        gc.collect()
        return cls(quantization.kind, trained, original)

    def against(self, merged: SafeVLM) -> MergeReport:
        """The report on the merged model, before its vocabulary is changed."""
        original = None if self.original is None else Difference.of(self.trained, self.original)
        return MergeReport(self.quantization, len(self.trained), Difference.of(self.trained, probe(merged)), original)


@torch.no_grad()
def probe(model: SafeVLM) -> Tensor:
    """Logits of PROBES at text tokens: (positions, vocabulary), float32, on the CPU."""
    processor, logits = model.processor, []
    for with_image, question, answer in PROBES:
        content = [{"type": "image", "image": Image.new("RGB", (336, 336), GREY)}] if with_image else []
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        batch = processor.collate([processor.encode(messages, answer)])
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        placeholders = torch.tensor([processor.image_token_id, *processor.safety_ids], device=model.device)
        is_text = ~torch.isin(inputs["input_ids"], placeholders)  # (1, T)
        logits.append(model(**inputs).logits[is_text].float().cpu())
    return torch.cat(logits)
