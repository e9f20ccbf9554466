import pytest
import torch
from helpers import tiny
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText
from transformers.trainer_pt_utils import find_batch_size

from safety_modules import SafeVLM, ask
from safety_modules.config import ConfigError
from safety_modules.model.losses import lm_loss, next_tokens, safety_losses
from safety_modules.model.packing import enable_packing
from train.data.dataset import Collator
from train.loop.sampler import StepSampler
from train.loop.trainer import TARGETS

ROWS = [
    (ask("what is this?", [tiny.image(1)]), "a red key"),
    (ask("a question without an image, rather longer than the others"), "I cannot help with this, but one green house"),
    (ask("two images", [tiny.image(2, (64, 30)), tiny.image(3, (20, 90))]), "two blue stars"),
    (ask("four", [tiny.image(i) for i in range(4, 8)]), "clean"),
]


def encoded(model, rows=ROWS):
    tensors = [model.processor.encode(messages, answer=answer) for messages, answer in rows]
    labels = {"risk_type": torch.tensor(1), "risk_level": torch.tensor(0)}
    return [{**row, **labels, "row": f"row {i}"} for i, row in enumerate(tensors)]


def outcome(model, batch):
    """Losses, and the gradients that they give."""
    model.zero_grad()
    output = model(**{name: value for name, value in batch.items() if name not in TARGETS})
    losses = safety_losses(
        output.logits, batch["labels"], *output.to_tuple()[1:], batch["risk_type"], batch["risk_level"], 10.0
    )
    losses.loss.backward()
    return losses, {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(model):
    model.base.model.vision_tower.requires_grad_(False)
    rows = encoded(model)
    padded, expected = outcome(model, Collator(model.processor)(rows))
    enable_packing(model.base)
    packed, actual = outcome(model, Collator(model.processor, packing=True)(rows))
    for name, value in padded._asdict().items():
        assert abs(value.item() - getattr(packed, name).item()) < 1e-4, name
    assert expected.keys() == actual.keys() and any("language_model.layers" in name for name in actual)
    for name, value in expected.items():
        assert torch.allclose(value, actual[name], atol=1e-4, rtol=1e-3), name


def test_in_a_pack_a_row_sees_itself_alone(model):
    enable_packing(model.base)
    collate = Collator(model.processor, packing=True)
    rows = encoded(model)
    with torch.no_grad():
        together = model(**{k: v for k, v in collate(rows).items() if k not in TARGETS}).logits[0]
        apart = [model(**{k: v for k, v in collate([row]).items() if k not in TARGETS}).logits[0] for row in rows]
    assert torch.allclose(together, torch.cat(apart), atol=1e-4)


def test_an_evaluation_counts_the_rows_of_a_pack(model):
    batch = Collator(model.processor, packing=True)(encoded(model))
    assert batch["input_ids"].shape[0] == 1 and find_batch_size(batch) == len(ROWS)


def test_after_packing_is_enabled_padded_rows_and_generation_are_as_before(base, model):
    stock = AutoModelForImageTextToText.from_pretrained(base).eval()
    enable_packing(model.base)
    rows = [model.processor.encode(messages, safety_tokens=False) for messages, _ in ROWS]
    batch = model.processor.collate(rows, side="left")
    inputs = {
        name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes") if name in batch
    }
    with torch.no_grad():
        mask = inputs["attention_mask"].bool()
        assert torch.allclose(stock(**inputs).logits[mask], model.base(**inputs).logits[mask], atol=1e-5)
    limits = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(stock.generate(**inputs, **limits), model.base.generate(**inputs, **limits))


def test_packing_is_refused_where_it_would_mix_rows(model):
    model.base.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match="attention 'eager' mixes the rows of a pack; use 'sdpa'"):
        enable_packing(model.base)
    model.base.config.get_text_config().sliding_window = 4096
    with pytest.raises(ConfigError, match="sliding window of 4096"):
        enable_packing(model.base)


def test_the_output_layer_runs_only_where_a_token_is_to_be_predicted(model):
    rows = encoded(model)
    batch = model.processor.collate([{k: v for k, v in row.items() if k != "row"} for row in rows])
    keep, targets = next_tokens(batch["labels"])
    inputs = {k: v for k, v in batch.items() if k not in TARGETS}
    with torch.no_grad():
        whole, few = model(**inputs).logits, model(**inputs, keep=keep).logits
    assert few.shape[1] == len(keep) < whole.shape[1]
    wanted = torch.nn.functional.cross_entropy(whole[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert torch.allclose(lm_loss(few, targets), wanted, atol=1e-5)


class SyncWatch(TorchDispatchMode):
    """Records operations whose result the host must wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave.Tensor", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.WAITS):
            self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_packed_step_never_waits_for_the_device(bases):
    # with padded rows transformers looks for padding, and waits
    model = SafeVLM.attach(bases["llava"], tiny.safety_config())
    enable_packing(model.base)
    batch = Collator(model.processor, packing=True)(encoded(model))
    tokens = torch.tensor(float(batch["tokens"]))
    with SyncWatch() as watch:
        output = model(**{name: value for name, value in batch.items() if name not in TARGETS})
        heads = (output.type_logits, output.level_logits, batch["risk_type"], batch["risk_level"])
        safety_losses(output.logits, batch["labels"], *heads, 10.0, tokens).loss.backward()
    assert watch.operations == []


def orders(rows, step, lengths=None, epochs=(0,)):
    sampler = StepSampler(rows, step, seed=3, lengths=lengths)
    rows_of_epochs = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        rows_of_epochs.append(list(sampler))
    return rows_of_epochs


def test_an_epoch_has_every_row_and_whole_steps():
    first, again, second = orders(10, 4, epochs=(0, 0, 1))
    assert first == again and first != second
    assert sorted(first[:10]) == sorted(second[:10]) == list(range(10))
    assert len(first) == len(StepSampler(10, 4, 0)) == 12 and first[10:] == first[:2]
    assert len(orders(3, 8)[0]) == 8  # fewer rows than a step has


def test_grouped_steps_are_of_one_kind_and_of_like_lengths_and_the_longest_comes_first():
    lengths = [(50 + 7 * i % 400, i % 3 > 0) for i in range(1000)]
    order = orders(1000, 8, lengths)[0]
    assert sorted(order[:1000]) == list(range(1000))
    steps = [order[i : i + 8] for i in range(0, len(order), 8)]
    kinds = [{lengths[row][1] for row in step} for step in steps]
    assert sum(len(kind) > 1 for kind in kinds) <= 2  # what is left over at the end
    spread = [max(lengths[row][0] for row in step) / min(lengths[row][0] for row in step) for step in steps[:-2]]
    assert sorted(spread)[len(spread) // 2] < 1.3
    assert max(lengths[row][0] for row in steps[0]) == max(length for length, _ in lengths)
    assert (
        len({tuple(step) for step in steps} & {tuple(s) for s in zip(*[iter(orders(1000, 8, lengths, (1,))[0])] * 8)})
        < 5
    )
