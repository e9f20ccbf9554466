"""Exchanges that several rooms answer, and how a model alone answers one."""

from helpers import tiny

from safety_modules.pipeline import ask

OF_ALL_KINDS = [
    ask("what is this?", [tiny.image(1)]),
    ask("a question without an image, rather longer than the others"),
    ask("two images", [tiny.image(2, (64, 30)), tiny.image(3, (20, 90))]),
]


FOR_EXPORT = [ask("what is this?", [tiny.image(1)]), ask("hello"), ask("two", [tiny.image(2), tiny.image(3, (30, 70))])]


def greedy(model, exchange):
    row = model.processor.encode(exchange)
    batch = model.processor.collate([row], side="left")
    keep = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "pixel_values", "image_sizes")}
    return model.generate(**keep, max_new_tokens=8)[0].tolist(), keep
