"""Activations: what the run without data counts, against what a real forward and backward pass keeps."""

import contextlib
import json

import pytest
import torch
from helpers import stage_runs as runs
from helpers import tiny
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from train.config import read_config
from train.planning.activations import LiveBytes, activation_bytes, largest_micro_batch

LORA = {"rank": 16, "alpha": 16, "dropout": 0.1}
FULL = {r"safety\..*": 1e-2, r"base\.model\.language_model\.layers\..*": 1e-3, r"base\..*": None}
PATCHES = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.table(tmp_path_factory.mktemp("activations") / "data")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A LLaVA whose blocks take the memory, not its embeddings: LLaVA-1.5's proportions, 64 patches an image."""
    folder = tmp_path_factory.mktemp("activations") / "base"
    tiny.base_folder("llava", folder)
    stock = LlavaConfig.from_pretrained(folder)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=stock.vision_config.image_size,
        patch_size=stock.vision_config.image_size // 8,
    )
    text = LlamaConfig(
        vocab_size=stock.text_config.vocab_size,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=stock.image_token_index)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "patch_size": vision.patch_size}))
    return folder


def kept_bytes(run, own):
    """Bytes of the storages that a forward pass keeps for its backward pass, without the model's own tensors."""
    own, sizes = {tensor.untyped_storage().data_ptr() for tensor in own}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        assert run() is not None
    return sum(size for size, _ in sizes.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rules,lora", [(runs.STAGE1, None), (runs.LORA, LORA), (FULL, None)])
def test_a_real_pass_keeps_what_is_counted(base, data, tmp_path, rules, lora, autocast):
    config = read_config(["--config", str(runs.config(data, tmp_path / "run", rules, base, lora))])
    trainer = runs.trainer_of(config)
    model = trainer.model.train()
    batch = largest_micro_batch(trainer.train_dataset, PATCHES, 4, False)
    inputs, trainer.local_batch_size = dict(batch.inputs), 4

    def run():
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            return trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(40.0))

    kept = kept_bytes(run, model.parameters())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with LiveBytes([*model.parameters(), *model.buffers()]) as real:
        run().backward()
    counted = activation_bytes(config, batch, False, torch.bfloat16 if autocast else None, cast=True)
    assert counted == pytest.approx(real.peak, rel=0.05), (counted, real.peak)
    assert kept <= counted  # the backward pass needs room of its own


def test_checkpointing_keeps_less_and_packing_runs(base, data, tmp_path):
    config = read_config(["--config", str(runs.config(data, tmp_path / "run", runs.LORA, base, LORA))])
    trainer = runs.trainer_of(config)
    batch = largest_micro_batch(trainer.train_dataset, PATCHES, 4, False)
    whole, less = (activation_bytes(config, batch, checkpointing, None, cast=True) for checkpointing in (False, True))
    assert less < 0.7 * whole
    half = activation_bytes(config, batch, False, torch.bfloat16, cast=False)
    assert half < 0.75 * whole
    packed = read_config(
        ["--config", str(runs.config(data, tmp_path / "packed", runs.LORA, base, LORA)), "--data.packing", "true"]
    )
    one_row = largest_micro_batch(trainer.train_dataset, PATCHES, 4, True)
    assert one_row.rows == 1 and activation_bytes(packed, one_row, False, None, cast=True) <= 1.05 * whole
