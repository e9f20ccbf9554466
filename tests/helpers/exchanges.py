"""Exchanges that tests of several rooms use, and a model's greedy answer to one."""

from helpers import tiny

from safety_modules.prompt.messages import ask

OF_ALL_KINDS = [
    ask("what is this?", [tiny.image(1)]),
    ask("a question without an image, rather longer than the others"),
    ask("two images", [tiny.image(2, (64, 30)), tiny.image(3, (20, 90))]),
]


FOR_EXPORT = [ask("what is this?", [tiny.image(1)]), ask("hello"), ask("two", [tiny.image(2), tiny.image(3, (30, 70))])]


def greedy(model, exchange):
    """Token ids of the answer, and the inputs of `generate`."""
    row = model.processor.encode(exchange)
    batch = model.processor.collate([row], side="left")
    names = ("input_ids", "attention_mask", "pixel_values", "image_sizes")
    inputs = {name: batch[name] for name in names if name in batch}
    return model.generate(**inputs, max_new_tokens=8)[0].tolist(), inputs
