import contextlib
import json
import re
import subprocess

import pytest
import stage_runs as runs
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor, TrainerCallback
from transformers.models.clip.modeling_clip import CLIPEncoder
from transformers.models.llama.modeling_llama import LlamaModel

from safety_modules.projector import CAbstractor
from train import memory
from train.blueprint import Blueprint, part_of
from train.config import read_config
from train.footprint import Batch, activations, longest
from train.forecast import plan, strategy
from train.memory import Blocks, Strategy, Weights, states
from train.plan import main
from train.run import prepare
from train.survival import MANIFEST

CONFIGS = runs.ROOT / "train" / "configs"
STAGES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
PAPER = ("stage1.yaml", "stage2_lora.yaml", "stage2_qlora.yaml", "guard.yaml", "new_categories.yaml")
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.table(tmp_path_factory.mktemp("plan") / "data")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """LLaVA-1.5-7B's shape with a tiny tokenizer: configs alone, no weights."""
    folder, tok = tmp_path_factory.mktemp("plan") / "7b", tiny.tokenizer("llava")
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    text = LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    token = tok.convert_tokens_to_ids("<image>")
    stock = LlavaConfig(vision_config=vision, text_config=text, image_token_index=token, dtype="float16")
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    common = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    stock.save_pretrained(folder)
    LlavaProcessor(images, tok, chat_template=tiny.VICUNA, **common).save_pretrained(folder)
    return folder


def stage(name, base, data, output, *more):
    """A shipped stage on this base, its trained modules taken for new ones."""
    named = re.search(r"^(base|modules):", (CONFIGS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    start = ["--base", base] + (["--modules", "null"] if not named or named[1] == "modules" else [])
    where = ["--data.root", data, "--output", output, "--data.validation", "[]", "--data.train", '[{"recipe": "custom"}]']
    quiet = ["--trainer.eval_strategy", "no", "--taxonomy", "null"]
    return ["--config", str(CONFIGS / name), *map(str, (*start, *where, *quiet, *more))]


@pytest.mark.parametrize("name", STAGES)
def test_every_shipped_stage_is_planned_on_a_7b_base_without_weights(name, large, data, tmp_path):
    config = read_config(stage(name, large, data, tmp_path / "run", "--data.max_length", 4096))
    made = plan(config, 8, 80)
    base = [c for c in made.counts if c.part in ("vision tower", "base projector", "output layer", "language model")]
    assert sum(c.parameters for c in base) == (455_825_408 if config.guard else 7_063_427_072)
    assert made.steps.total >= 1
    if name in PAPER:  # the others are for a tiny base, with large batches and eager attention
        assert made.cheapest() is not None
    assert made.batch.tokens > 576 * 3, "the row of three pictures is the longest"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("rules,lora,guard", [(runs.STAGE1, None, False), (runs.LORA, LORA, False), (runs.STAGE1, None, True)])
def test_the_blueprint_counts_what_is_built(bases, data, tmp_path, family, rules, lora, guard):
    if guard:
        rules = {r"safety\.llm_tokens\..*": None, **rules}
    path = runs.config(data, tmp_path / "run", rules, bases[family], lora)
    config = read_config(["--config", str(path), "--guard", str(guard).lower()])
    found = {}
    for name, parameter in prepare(config)[0].model.named_parameters():
        key = (part_of(name), str(parameter.dtype)[6:], parameter.requires_grad)
        found[key] = found.get(key, 0) + parameter.numel()
    blueprint = Blueprint.of(config)
    assert {(c.part, c.dtype, c.trained): c.parameters for c in blueprint.counts()} == found
    assert all(parameter.is_meta for parameter in blueprint.model.parameters())


class Gradients(TrainerCallback):
    bytes = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.bytes = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("lora", [None, LORA])
def test_states_are_those_of_a_real_step_and_its_checkpoint(bases, data, tmp_path, lora):
    rules = runs.LORA if lora else runs.STAGE1
    path = runs.config(data, tmp_path / "run", rules, bases["llava"], lora, max_steps=1, save_strategy="steps", save_steps=1)
    config = read_config(["--config", str(path)])
    trainer, *_ = prepare(config)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    blueprint = Blueprint.of(config)
    weights, optimizer = blueprint.weights(), blueprint.optimizer(trainer.args.optim.value)
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
    casts = cast * {"lora": adapters if mode == "lora" else 0, "full": linear, "frozen": 0}[mode]  # cached over the pass
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
    expected = stack + 4 * width * rows * tokens + (0 if checkpointing else 2 * casts * layers)  # and the last norm's input
    assert found / expected == pytest.approx(1, abs=0.15), (found, expected)


def forward(model, embeds, mask, cast):
    context = torch.autocast("cpu", torch.bfloat16) if cast else contextlib.nullcontext()
    with context:
        return model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rules,lora", [(runs.STAGE1, None), (runs.LORA, {**LORA, "dropout": 0.0}), ({".*": 1e-3}, None)])
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
    parts = activations(Blueprint.of(config), config, batch, torch.float32, checkpointing, False)
    later = parts["one block"] + parts["logits"] * 3 / 4  # gradients, and the block that is computed again, come with backward
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
    found = {stage: states(weights, Strategy("", stage=stage), 8 * weights.trained, 64, True).stay / 1e9 for stage in (2, 3)}
    assert found[2] == pytest.approx(16.6, abs=0.1) and found[3] == pytest.approx(1.88, abs=0.01)
    assert states(weights, Strategy("", stage=2), 8 * weights.trained, 1, True).stay == 16 * weights.trained


def test_offloading_leaves_the_states_to_the_host():
    weights = Weights(100, 900, 400, 1800)
    near, far = (states(weights, Strategy("", stage=3, offload=o, offload_weights=o), 800, 1, True) for o in (False, True))
    assert near.stay == 2 * 1000 + 2 * 100 + 800 + 400 and near.host == 0
    assert far.stay == 0 and far.host == 2 * 1000 + 4 * 100 + 4 * 100 + 800


def test_the_shipped_deepspeed_files_are_the_strategies():
    names = ("", "zero2", "zero3", "zero2_offload", "zero3_offload")
    assert [strategy(name, 64).stage for name in names] == [0, 2, 3, 2, 3]
    assert {path.stem for path in CONFIGS.glob("zero*.json")} == set(names[1:])
    assert [strategy(name, 64).offload for name in names] == [False, False, False, True, True]
    assert strategy("zero3", 64).bucket == 64 * 64


def test_the_sum_in_the_qlora_stage_is_the_plans(large, data, tmp_path):
    text = (CONFIGS / "stage2_qlora.yaml").read_text(encoding="utf-8")
    stay, whole = (float(re.search(pattern, text)[1]) for pattern in (r"= [\d.]+: ([\d.]+) that stay", r"about ([\d.]+)\. So"))
    config = read_config(stage("stage2_qlora.yaml", large, data, tmp_path / "run"))
    blueprint = Blueprint.of(config)
    held = states(blueprint.weights(), strategy("", 4096), blueprint.optimizer("paged_adamw_8bit"), 1, True)
    assert held.stay / 1e9 == pytest.approx(stay, abs=0.1)
    batch = Batch(rows=2, tokens=2048, padded=False, positions=2 * 2048, pictures=2, units=2, question=64)
    found = activations(blueprint, config, batch, torch.bfloat16, True, True)
    assert (held.stay + sum(found.values()) + memory.CUDA) / 1e9 == pytest.approx(whole, abs=0.2)


def test_the_command_prints_writes_and_probes_and_leaves_nothing(bases, data, tmp_path, capsys):
    path = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"])
    before = sorted((tmp_path / "run").iterdir())
    main(["--config", str(path), "--gpus", "2", "--probe", "6", "--json", str(tmp_path / "plan.json")])
    out = capsys.readouterr().out
    made = json.loads((tmp_path / "plan.json").read_text())
    assert "torchrun --nproc_per_node 2 -m train.run --config" in out.replace("\n", "") and "rows per second" in out
    assert "not of a GPU" in out or torch.cuda.is_available()
    assert made["steps"]["rows"] == 22 and made["steps"]["rows_of_step"] == 8 and made["steps"]["total"] == 8
    assert made["speed"]["rows"] == 4 and made["hours"] > 0 and 0 <= made["speed"]["waiting"] < 1
    assert sorted((tmp_path / "run").iterdir()) == before


def test_an_unfinished_run_stays_as_it_is_and_is_named(bases, data, tmp_path, capsys):
    path = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"])
    whole, half = (tmp_path / "run" / f"checkpoint-{step}" for step in (2, 4))
    for folder in (whole, half):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"1234")
    manifest = {"step": 2, "rows_of_step": 4, "processes": 1, "files": {"model.safetensors": 4}}
    (whole / MANIFEST).write_text(json.dumps(manifest))
    main(["--config", str(path), "--gpus", "1", "--probe", "3"])
    assert "go on from step 2" in capsys.readouterr().out.replace("\n", " ")
    assert half.is_dir() and whole.is_dir(), "even the half-written one is left"
    with pytest.raises(SystemExit) as exit_:
        main(["--config", str(path), "--gpus", "3", "--probe", "0"])
    assert exit_.value.code == 2 and "4 rows, which 3 processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change,message",
    [
        (["--head_wieght", "1"], "head_wieght"),
        (["--rules", '{"safety\\\\..*": 1e-2}'], "no pattern claims the parameter 'base"),
        (["--dtype", "int3"], "dtype: 'int3'"),
        (["--base", "null", "--modules", "nowhere", "--safety", "null"], "nowhere: no file safety/config.json"),
        (["--base", "no/such/base"], "no config that can be read"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--data.max_length", "20"], "more than max_length 20"),
        (["--trainer.deepspeed", "nowhere.json"], "there is no file 'nowhere.json'"),
        (["--gpus", "0"], "at least 1 GPU"),
        (["--lora.rank", "4", "--rules", '{".*": 1e-2}'], "lora: the rules also train"),
    ],
)
def test_what_is_wrong_ends_with_one_line_and_code_2(bases, data, tmp_path, capsys, change, message):
    path = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"])
    with pytest.raises(SystemExit) as exit_:
        main(["--config", str(path), "--probe", "0", *change])
    error = capsys.readouterr().err.splitlines()
    lines = [line for line in error if line.startswith("error: ")]
    assert exit_.value.code == 2 and len(lines) == 1 and message in lines[0], error


def test_16_bit_weights_and_quantised_ones_are_not_offered_what_is_refused(large, data, tmp_path):
    rules = ["--rules", json.dumps({r"safety\..*": None, r"base\.model\.language_model\..*": 1e-5, r"base\..*": None})]
    made = plan(read_config(stage("stage1.yaml", large, data, tmp_path, *rules)), 8, 80)
    verdicts = {row.strategy.name: row.verdict for row in made.rows}
    assert verdicts["DDP"] == "needs dtype float32" and made.cheapest().strategy.name == "ZeRO-2"
    made = plan(read_config(stage("stage2_qlora.yaml", large, data, tmp_path)), 1, 24)
    assert made.cheapest().strategy.name == "DDP"
    assert [row.verdict for row in made.rows if row.strategy.stage == 3] == ["not with quantize"] * 2


@pytest.mark.recipe
def test_two_processes_are_measured_and_the_first_prints(bases, data, tmp_path):
    path = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"], per_device_train_batch_size=2)
    command = runs.command("--config", path, "--probe", 4, processes=2)
    place = command.index(str(runs.ROOT / "tests" / "launch.py"))
    command[place : place + 1] = ["-m", "train.plan"]
    done = subprocess.run(command, cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rows per second with 2 process(es)") == 1 and done.stdout.count("Parameters") == 1
