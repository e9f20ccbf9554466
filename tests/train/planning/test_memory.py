"""Memory: what the plan's formulas say, against what torch, bitsandbytes and a real step hold."""

import contextlib

import pytest
import torch
from helpers import stage_runs as runs
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPVisionConfig, LlamaConfig, TrainerCallback
from transformers.models.clip.modeling_clip import CLIPEncoder
from transformers.models.llama.modeling_llama import LlamaModel

from safety_modules.model.projector import CAbstractor
from train.config import read_config
from train.planning import memory
from train.planning.activations import activations, longest
from train.planning.memory import Blocks, Strategy, Weights, states
from train.planning.meta_model import MetaModel
from train.run import prepare

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.table(tmp_path_factory.mktemp("memory") / "data")


class Gradients(TrainerCallback):
    bytes = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.bytes = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("lora", [None, LORA])
def test_states_are_those_of_a_real_step_and_its_checkpoint(bases, data, tmp_path, lora):
    rules = runs.LORA if lora else runs.STAGE1
    path = runs.config(
        data, tmp_path / "run", rules, bases["llava"], lora, max_steps=1, save_strategy="steps", save_steps=1
    )
    config = read_config(["--config", str(path)])
    trainer, *_ = prepare(config)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    meta_model = MetaModel.of(config)
    weights, optimizer = meta_model.weights(), meta_model.optimizer(trainer.args.optim.value)
    held = states(weights, Strategy("DDP"), optimizer, 1, False)
    assert held.weights == sum(p.nbytes for p in trainer.model.parameters())
    assert held.gradients == gradients.bytes
    inner = trainer.optimizer.optimizer if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer
    assert held.optimizer == sum(v.nbytes for state in inner.state.values() for v in state.values())
    folder = tmp_path / "run" / "checkpoint-1"
    written = sum((folder / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert written == pytest.approx(memory.checkpoint_bytes(weights, optimizer, False), rel=0.1, abs=80_000)


def test_8_bit_states_are_those_of_bitsandbytes():
    optim = pytest.importorskip("bitsandbytes.optim")
    shapes = [(100, 100), (30, 30), (4096,)]
    tensors = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = optim.AdamW8bit(tensors)
    sum(tensor.sum() for tensor in tensors).backward()
    optimizer.step()
    found = sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and "qmap" not in name
    )
    assert memory.optimizer_bytes("adamw_8bit", shapes) == found


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_weights_are_those_of_bitsandbytes(kind):
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Int8Params

    weight = torch.randn(1024, 2048)
    if kind == "nf4":
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        found = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    else:
        held = Int8Params(weight, requires_grad=False).to("cpu")
        found = held.data.nbytes + (held.SCB.nbytes if held.SCB is not None else 4 * 1024)
    assert memory.quantised_bits(kind, 2048) * weight.numel() / 8 == pytest.approx(found, rel=1e-6)


def kept(run, own):
    """Bytes of all storages that a forward pass keeps, those of the model's own tensors left out."""
    own, seen = {tensor.untyped_storage().data_ptr() for tensor in own}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result is not None
    return sum(size for size, _ in seen.values())


CASES = [  # weights, autocast, trained, dropout, padded, attention
    ("float32", False, "frozen", 0.0, False, "sdpa"),
    ("float32", False, "full", 0.0, False, "sdpa"),
    ("float32", False, "lora", 0.0, False, "sdpa"),
    ("float32", False, "lora", 0.1, False, "sdpa"),
    ("bfloat16", False, "frozen", 0.0, False, "sdpa"),
    ("bfloat16", False, "full", 0.0, False, "sdpa"),
    ("bfloat16", False, "frozen", 0.0, True, "sdpa"),
    ("bfloat16", False, "frozen", 0.0, False, "eager"),
    ("bfloat16", True, "lora", 0.0, False, "sdpa"),
    ("bfloat16", True, "lora", 0.1, True, "sdpa"),
    ("float32", True, "frozen", 0.0, False, "sdpa"),
    ("float32", True, "full", 0.0, False, "sdpa"),
    ("float16", True, "frozen", 0.0, False, "sdpa"),
]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype,cast,mode,dropout,padded,attention", CASES)
def test_the_blocks_keep_what_the_formula_says(dtype, cast, mode, dropout, padded, attention, checkpointing):
    torch.manual_seed(0)
    rows, tokens, width, inner, layers, heads, rank = 2, 128, 256, 688, 6, 8, 16
    text = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=32
    )
    text._attn_implementation = attention
    model = LlamaModel(text).to(getattr(torch, dtype)).train().requires_grad_(mode == "full")
    if mode == "lora":
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        get_peft_model(model, LoraConfig(r=rank, lora_dropout=dropout, target_modules=names))
    if checkpointing:
        model.gradient_checkpointing_enable()
    embeds = torch.randn(rows, tokens, width, dtype=getattr(torch, dtype), requires_grad=True)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, -9:] = 0 if padded else 1
    found = kept(lambda: forward(model, embeds, mask, cast), model.parameters())
    compute = 2 if cast else embeds.dtype.itemsize
    stream = compute if not cast or dtype == "bfloat16" else 4
    linear = 4 * width * width + 3 * width * inner
    adapters = rank * (8 * width + 3 * (width + inner))
    casts = (
        cast * {"lora": adapters if mode == "lora" else 0, "full": linear, "frozen": 0}[mode]
    )  # cached over the pass
    blocks = Blocks(
        layers,
        width,
        inner,
        heads,
        trained=mode == "full",
        rank=rank if mode == "lora" else 0,
        mask=4 if dropout else 0,  # on a CPU, where the test is; 1 on a GPU
        apart=mode == "lora" and (dropout > 0 or cast),
        weights=linear if cast and mode == "frozen" and dtype != "bfloat16" else 0,
    )
    pairs = memory.pair_bytes(attention, heads, compute, padded)
    stack, _ = memory.stack_bytes(blocks, rows, tokens, compute, stream, checkpointing, pairs)
    expected = (
        stack + 4 * width * rows * tokens + (0 if checkpointing else 2 * casts * layers)
    )  # and the last norm's input
    assert found / expected == pytest.approx(1, abs=0.15), (found, expected)


def forward(model, embeds, mask, cast):
    context = torch.autocast("cpu", torch.bfloat16) if cast else contextlib.nullcontext()
    with context:
        return model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "rules,lora", [(runs.STAGE1, None), (runs.LORA, {**LORA, "dropout": 0.0}), ({".*": 1e-3}, None)]
)
def test_a_whole_forward_pass_keeps_what_the_footprint_says(bases, data, tmp_path, rules, lora, checkpointing):
    path = runs.config(data, tmp_path / "run", rules, bases["llava"], lora)
    config = read_config(["--config", str(path)])
    trainer, *_ = prepare(config)
    model, rows = trainer.model.train(), trainer.train_dataset
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = longest(rows, 16, 4, False)
    places = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))[:4]
    inputs, trainer.rows_of_step = trainer.data_collator([rows[i] for i in places]), 4
    found = kept(lambda: trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(40.0)), model.parameters())
    parts = activations(MetaModel.of(config), config, batch, torch.float32, checkpointing, False)
    later = (
        parts["one block"] + parts["logits"] * 3 / 4
    )  # gradients, and the block that is computed again, come with backward
    near = 0.5 if checkpointing else 0.25  # beside two tiny blocks' inputs, embeddings and what the tower reads count
    assert found / (sum(parts.values()) - later) == pytest.approx(1, abs=near), (found, parts)


@pytest.mark.parametrize("cast", [False, True])
def test_the_tower_keeps_what_the_formula_says_where_it_is_trained(cast):
    vision = CLIPVisionConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
    vision._attn_implementation = "sdpa"
    tower = CLIPEncoder(vision).train()
    pixels = torch.randn(2, 65, 128, requires_grad=True)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            return tower(inputs_embeds=pixels, attention_mask=None).last_hidden_state

    found = kept(run, [pixels, *tower.parameters()])
    blocks = Blocks(4, 128, 512, 4, gated=False, trained=True)
    expected, _ = memory.stack_bytes(blocks, 2, 65, 2 if cast else 4, 4, False)
    expected += 2 * 4 * (4 * 128 * 128 + 2 * 128 * 512) if cast else 0
    assert found / expected == pytest.approx(1, abs=0.25), (found, expected)


@pytest.mark.parametrize("cast", [False, True])
def test_the_safety_projector_keeps_what_the_formula_says(cast):
    projector = CAbstractor(64, 256, 96, 3, None)
    features = torch.randn(2, 144, 64)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            return projector(features)

    found = kept(run, [features, *projector.parameters()])
    weights = 2 * sum(p.numel() for p in projector.parameters() if p.ndim > 1) if cast else 0
    size = 2 if cast else 4  # of the norms' inputs, too: autocast widens them on a GPU alone
    expected = memory.module_bytes(2, 144, 64, 96, 6, 256, 0, size, wide=size) + weights
    assert found / expected == pytest.approx(1, abs=0.25), (found, expected)


def test_zero_divides_what_its_paper_says():
    weights = Weights(7_500_000_000, 0, 30_000_000_000, 0)  # section 3 and table 1: 7.5B parameters on 64 GPUs
    found = {
        stage: states(weights, Strategy("", stage=stage), 8 * weights.trained, 64, True).stay / 1e9 for stage in (2, 3)
    }
    assert found[2] == pytest.approx(16.6, abs=0.1) and found[3] == pytest.approx(1.88, abs=0.01)
    assert states(weights, Strategy("", stage=2), 8 * weights.trained, 1, True).stay == 16 * weights.trained


def test_offloading_leaves_the_states_to_the_host():
    weights = Weights(100, 900, 400, 1800)
    near, far = (
        states(weights, Strategy("", stage=3, offload=o, offload_weights=o), 800, 1, True) for o in (False, True)
    )
    assert near.stay == 2 * 1000 + 2 * 100 + 800 + 400 and near.host == 0
    assert far.stay == 0 and far.host == 2 * 1000 + 4 * 100 + 4 * 100 + 800
