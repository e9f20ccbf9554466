"""Model card of an exported folder."""

from __future__ import annotations

from safety_modules.checkpoints.merge_report import MergeReport
from safety_modules.model.safe_vlm import SafeVLM

CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [safety, llava, safety-modules]
---
# {base} with safety modules

A merged checkpoint: the base model with its adapters merged in, {tokens} safety tokens in its vocabulary, and a safety
head with its projector in `safety/`.

## Use
Any software that loads the base loads this folder; the chat template writes the safety tokens before each image.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
```

With the safety head and a policy, and with users' texts kept from forming special tokens:

```python
from safety_modules import SafePipeline, ask

result = SafePipeline.from_pretrained(folder)([ask("What is this?", ["image.png"])])[0]
print(result.answer, result.action, result.assessment.risk_type)
```

## Categories
| type | default level | what it covers |
|---|---|---|
{types}

Levels: {levels}.
{merge}
## Limits
The head's probabilities are uncalibrated unless a calibration was stored. Stock software reads the tokens but not the head:
there is then no assessment and no policy. Measure on your own data before you rely on it.
"""


MERGE = """
## Merge
Logits against the adapter beside the weights that it was trained on{trained}, at {positions} text positions.

| model | largest difference | mean difference | same greedy token |
|---|---|---|---|
{rows}
"""


def model_card(model: SafeVLM, base: str, report: MergeReport | None = None) -> str:
    """Markdown for the exported model; `base` is the name or place of its base."""
    types = "\n".join(f"| {risk.name} | {risk.level} | {risk.hint or 'no risk'} |" for risk in model.taxonomy.types)
    levels = ", ".join(f"{i} {name}" for i, name in enumerate(model.taxonomy.level_names))
    name = base.rstrip("/").split("/")[-1]
    return CARD.format(
        base=name,
        tokens=model.safety_config.llm_tokens,
        types=types,
        levels=levels,
        merge=_merge(report) if report else "",
    )


def _merge(report: MergeReport) -> str:
    rows = "\n".join(f"| {name} | {d.max:.2g} | {d.mean:.2g} | {d.same:.1%} |" for name, d in report.rows())
    trained = f", the base in {report.quantization}" if report.quantization else ""
    return MERGE.format(trained=trained, positions=report.positions, rows=rows)
