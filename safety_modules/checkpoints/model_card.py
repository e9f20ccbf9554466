"""Model card of an exported folder."""

from __future__ import annotations

from safety_modules.checkpoints.merge_report import MergeReport
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.tables import markdown_table

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

With the safety head and a policy, and with special tokens in users' texts read as plain text:

```python
from safety_modules import SafePipeline, ask

result = SafePipeline.from_pretrained(folder)([ask("What is this?", ["image.png"])])[0]
print(result.answer, result.action, result.assessment.risk_type)
```

## Categories
{types}
Levels: {levels}.
{merge}
## Limits
The head's probabilities are uncalibrated unless `safety/calibration.json` exists. Stock software reads the tokens but
not the head: there is then no assessment and no policy. Measure on your own data before you rely on it.
"""

MERGE = """
## Merge
Logits compared with those of the unmerged adapter on the weights that it was trained on{trained}, at {positions} text
positions.

{rows}"""


def model_card(model: SafeVLM, base: str, report: MergeReport | None = None) -> str:
    """Markdown for the exported model. Args: base: name or place of its base."""
    types = [(risk.name, str(risk.level), risk.hint or "no risk") for risk in model.taxonomy.types]
    return CARD.format(
        base=base.rstrip("/").split("/")[-1],
        tokens=model.safety_config.llm_tokens,
        types=markdown_table(("type", "default level", "what it covers"), types),
        levels=", ".join(f"{i} {name}" for i, name in enumerate(model.taxonomy.level_names)),
        merge=_merge(report) if report else "",
    )


def _merge(report: MergeReport) -> str:
    rows = [(title, f"{gap.max:.2g}", f"{gap.mean:.2g}", f"{gap.same:.1%}") for title, gap in report.rows()]
    header = ("model", "largest difference", "mean difference", "same greedy token")
    trained = f", the base in {report.quantization}" if report.quantization else ""
    return MERGE.format(trained=trained, positions=report.positions, rows=markdown_table(header, rows))
