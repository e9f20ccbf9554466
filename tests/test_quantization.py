import gc
import json
import sys
import weakref
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_export import EXCHANGES, greedy
from transformers import AutoModelForImageTextToText

from safety_modules import SafeVLM, checkpoint
from safety_modules.base import load_base
from safety_modules.config import ConfigError
from safety_modules.export import export
from safety_modules.merge_check import Difference, MergeReport, Unmerged, probe
from safety_modules.quantization import KINDS, Quantization, dequantized, quantized_layers
from scripts.export import main as export_main
from train.config import LoraConfig, TrainConfig, read_config
from train.run import add_lora, build, prepare, train

FROZEN = {r"base\..*lora_.*": 1e-2, r"base\..*": None, r"safety\..*": None}
TOGETHER = {r"base\..*lora_.*": 1e-2, r"base\..*": None, r"safety\..*": 1e-2}
BLOCKS = "model.language_model.layers."


@pytest.fixture(scope="module", autouse=True)
def bitsandbytes():
    """Imported once, late: it takes seconds."""
    return pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight pictures with labels and one row without."""
    root = tmp_path_factory.mktemp("data")
    rows = ["image,question,answer,risk_type,risk_level,split", ",what colour?,a red key,clean,0,train"]
    for i in range(8):
        tiny.picture(i).save(root / f"{i}.png")
        rows.append(f"{i}.png,,,{('privacy', 'clean')[i % 2]},,{'validation' if i > 5 else 'train'}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def read(data, output, base, rules=FROZEN, quantize="nf4", *more, **trainer):
    """A stage of three steps, read as the command line does."""
    values = {
        "output": str(output),
        "base": str(base),
        "quantize": quantize,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "safety": tiny.safety_config().to_dict(),
        "rules": rules,
        "data": {
            "root": str(data),
            "train": [{"recipe": "custom"}],
            "validation": [{"recipe": "custom", "split": "validation"}],
        },
        "trainer": {"max_steps": 3, "per_device_train_batch_size": 2, "report_to": "none", "disable_tqdm": True, **trainer},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "stage.yaml").write_text(json.dumps(values), encoding="utf-8")
    return read_config(["--config", str(output / "stage.yaml"), *map(str, more)])


def adapted(base, folder, kind, **quantization):
    """A folder with LoRA weights, large ones, that belong to a quantised base; made without a training run."""
    torch.manual_seed(1)
    model = SafeVLM.attach(base, tiny.safety_config(), quantize=Quantization(kind, **quantization))
    adapter = add_lora(model, LoraConfig(rank=4, alpha=8, dropout=0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "llm_tokens" in name:
                parameter.normal_(std=0.5)
    with checkpoint.fresh_folder(folder) as work:
        checkpoint.save_safety(model, work, str(base))
        adapter.save_pretrained(work / checkpoint.ADAPTER)
    return folder


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def qlora(request, bases, tmp_path_factory):
    """Such a folder in nf4."""
    return adapted(bases[request.param], tmp_path_factory.mktemp("qlora") / "final", "nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_linear_layers_of_the_blocks_are_quantised(base, kind):
    plain = load_base(base)
    held = SafeVLM.attach(base, tiny.safety_config(), quantize=Quantization(kind))
    linear = [name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)]
    blocks = [name for name in linear if name.startswith(BLOCKS)]
    assert 0 < len(blocks) < len(linear) and quantized_layers(held.base) == blocks
    assert quantized_layers(held.safety) == []
    for name, value in plain.named_parameters():
        if name.removesuffix(".weight") not in blocks:
            assert torch.equal(held.base.get_parameter(name), value), name
    assert {parameter.dtype for parameter in held.safety.parameters()} == {torch.float32}


def test_nf4_has_double_quantisation_and_computes_in_what_the_stage_does(base, data, tmp_path):
    for bf16, compute in ((False, torch.float32), (True, torch.bfloat16)):
        model, _ = build(read(data, tmp_path, base, FROZEN, "nf4", "--dtype", "bfloat16", bf16=bf16))
        for name in quantized_layers(model.base):
            layer = model.base.get_submodule(name)
            assert layer.weight.quant_state.nested and layer.weight.quant_state.quant_type == "nf4"
            assert layer.compute_dtype == compute
        assert Quantization.of(model.base) == Quantization("nf4", str(compute).removeprefix("torch."), "bfloat16")


@pytest.mark.parametrize("kind,rules,checkpointing", [("nf4", FROZEN, True), ("nf4", TOGETHER, False), ("int8", TOGETHER, True)])
def test_contract_3_on_a_quantised_base_moved_equals_requires_grad(base, data, tmp_path, kind, rules, checkpointing):
    trainer, *_ = prepare(read(data, tmp_path / "run", base, rules, kind, gradient_checkpointing=checkpointing))
    model = trainer.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.train(ignore_keys_for_eval=["logits"])
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name]) is p.requires_grad] == []
    lora = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert {name.split(".lora_")[0] for name in lora} == {f"base.{name}" for name in _places(model)}
    assert {p.dtype for p in lora.values()} == {torch.float32} and all(p.requires_grad for p in lora.values())


def _places(model):
    return [name.removesuffix(".base_layer") for name in quantized_layers(model.base)]


@pytest.mark.parametrize("kind,optim", [("nf4", "adamw_torch"), ("nf4", "adamw_8bit"), ("int8", "adamw_torch")])
def test_a_quantised_run_goes_on_from_its_checkpoint(bases, data, tmp_path, kind, optim):
    def run(name, steps):
        made = read(data, tmp_path / name, bases["llava"], TOGETHER, kind, "--trainer.max_steps", steps, "--lora.rank", 64,
                    lr_scheduler_type="constant", save_steps=2, eval_strategy="steps", eval_steps=2, optim=optim)  # fmt: skip
        return train(made)

    whole = run("whole", 4)
    run("two", 2)
    two = run("two", 4)
    for file in ("adapter/adapter_model.safetensors", "safety/model.safetensors"):
        first, second = load_file(whole / file), load_file(two / file)
        for name, value in first.items():
            assert torch.allclose(value, second[name], atol=1e-6), name
    stopped = load_file(tmp_path / "two" / "checkpoint-2" / "model.safetensors")
    assert any(not torch.equal(stopped[f"safety.{name}"], value) for name, value in second.items())


def test_the_folder_remembers_the_quantisation(bases, data, tmp_path):
    final = train(read(data, tmp_path / "run", bases["llava"], max_steps=1))
    meta = json.loads((final / "safety" / "config.json").read_text())
    assert meta["format"] == 1 and meta["quantization"] == {"kind": "nf4", "compute": "float32", "dtype": "float32"}
    assert len(quantized_layers(checkpoint.load(final, merge=False).base)) == 14
    assert quantized_layers(checkpoint.load(final).base) == []


def test_merged_is_unmerged_and_merging_into_the_original_weights_is_not(qlora):
    unmerged = Unmerged.of(qlora)
    report = unmerged.against(checkpoint.load(qlora))
    assert report.quantization == "nf4" and report.positions == len(unmerged.trained) > 50
    scale = unmerged.trained.abs().max().item()
    assert report.merged.max < 1e-4 * scale and report.merged.same == 1
    assert report.onto_original.max > 0.1 * scale and report.onto_original.same < 1
    wrong = checkpoint.load(qlora, quantize=None)
    assert Difference.of(unmerged.trained, probe(wrong)).max == pytest.approx(report.onto_original.max, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_weight_is_the_dequantised_one_plus_the_adapter_rounded_once(bases, tmp_path, kind):
    folder = adapted(bases["llava"], tmp_path / "final", kind)
    beside = checkpoint.load(folder, merge=False)
    exact, rounded = checkpoint.load(folder), checkpoint.load(folder, dtype="bfloat16")
    assert {p.dtype for p in rounded.base.parameters()} == {torch.bfloat16} and rounded.base.dtype == torch.bfloat16
    beside.train()  # int8 then multiplies by W_q itself; evaluating it rounds the inputs too
    for place in _places(beside):
        layer = beside.base.get_submodule(place)
        with torch.no_grad():
            seen = layer(torch.eye(layer.in_features)).T  # W_q + BA, as the layer itself computes it
        weight = exact.base.get_submodule(place).weight
        assert type(exact.base.get_submodule(place)) is torch.nn.Linear
        assert torch.allclose(weight, seen, atol=1e-5), place
        assert torch.equal(rounded.base.get_submodule(place).weight, weight.bfloat16()), place


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_leaves_the_quantised_weights_as_they_were(bases, tmp_path, kind):
    model = checkpoint.load(adapted(bases["llava"], tmp_path / "final", kind), merge=False)
    layers = {name: model.base.get_submodule(name) for name in quantized_layers(model.base)}
    before = {name: dequantized(layer) for name, layer in layers.items()}
    first, second = probe(model), probe(model)
    assert torch.equal(first, second)
    for name, layer in layers.items():
        assert torch.equal(dequantized(layer), before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_merging_lets_each_quantised_layer_go(bases, tmp_path, kind, monkeypatch):
    folder, held = adapted(bases["llava"], tmp_path / "final", kind), []
    merge = checkpoint.merge_quantized

    def watched(model, dtype):
        held.extend(weakref.ref(p) for p in model.parameters() if not p.is_floating_point())
        gc.collect()
        gc.disable()  # a large merge has few objects: the collector would not run
        try:
            return merge(model, dtype)
        finally:
            left.append(sum(weight() is not None for weight in held))
            gc.enable()

    left = []
    monkeypatch.setattr(checkpoint, "merge_quantized", watched)
    checkpoint.load(folder)
    assert len(held) == 14 and left == [0]


def test_a_base_in_another_dtype_is_quantised_as_in_training_and_merged_to_its_own(bases, tmp_path):
    half = load_base(bases["llava"], torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    for path in bases["llava"].iterdir():
        if not (tmp_path / "half" / path.name).exists():
            (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    folder = adapted(tmp_path / "half", tmp_path / "final", "nf4", dtype="float32")
    meta = json.loads((folder / "safety" / "config.json").read_text())
    assert checkpoint.load(folder, merge=False).base.dtype == torch.bfloat16 and meta["quantization"]["dtype"] == "bfloat16"
    meta["quantization"]["dtype"] = "float32"  # as a stage with `dtype: float32` leaves it
    (folder / "safety" / "config.json").write_text(json.dumps(meta))
    assert checkpoint.load(folder, merge=False).base.dtype == torch.float32
    assert checkpoint.load(folder).base.dtype == torch.bfloat16


def test_the_export_of_a_qlora_folder_is_a_stock_model_with_the_same_answers(qlora, tmp_path, capsys):
    output = tmp_path / "export"
    export_main([str(qlora), str(output)])
    source = checkpoint.load(qlora, merge=False)
    stock, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for exchange in EXCHANGES:
        tokens, inputs = greedy(source, exchange)
        answer = stock.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.tolist() == tokens
    for path in ("config.json", "safety/config.json"):
        assert "quantization" not in (output / path).read_text()
    report = MergeReport.read(output)
    assert report.merged.max < 1e-3 < report.onto_original.max
    card, printed = (output / "README.md").read_text(), capsys.readouterr().out
    for text in (card, printed):
        assert f"{report.merged.max:.2g}" in text and f"{report.onto_original.max:.2g}" in text
    assert "the base in nf4" in card


def test_plain_lora_is_compared_too_and_the_comparison_can_be_left_out(trained, tmp_path, capsys):
    report = MergeReport.read(export(trained, tmp_path / "checked"))
    assert report.quantization is None and report.onto_original is None
    assert 0 < report.merged.max < 1e-2 and report.merged.same == 1
    assert "## Merge" in (tmp_path / "checked" / "README.md").read_text()
    export_main([str(trained), str(tmp_path / "unchecked"), "--no-check"])
    assert MergeReport.read(tmp_path / "unchecked") is None and "logits" not in capsys.readouterr().out
    assert "## Merge" not in (tmp_path / "unchecked" / "README.md").read_text()
    export(tmp_path / "unchecked", tmp_path / "again")  # no adapter: nothing was merged
    assert MergeReport.read(tmp_path / "again") is None


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizers_keep_the_states_of_tokens_in_32_bits(bases, data, tmp_path, optim, bitsandbytes):
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()  # of this process: others' overrides go by position
    rules = {r"base\..*lora_.*": 1e-2, r"base\..*": None, r"safety\.llm_tokens\..*": 1e-3, r"safety\..*": None}
    more = ["--lora.rank", 64, "--safety.llm_tokens", 64]  # below 4096 numbers a state has 32 bits anyway
    trainer, *_ = prepare(read(data, tmp_path / "run", bases["llava"], rules, "nf4", *more, max_steps=1, optim=optim))
    if optim.startswith("paged") and not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="not supported on CPU. Falling back to non-paged"):
            trainer.train(ignore_keys_for_eval=["logits"])
    else:
        trainer.train(ignore_keys_for_eval=["logits"])
    optimizer = trainer.optimizer
    optimizer = optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer
    assert type(optimizer).__module__.startswith("bitsandbytes")
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    states = {names[id(p)]: state["state1"].dtype for p, state in optimizer.state.items()}
    assert states.pop("safety.llm_tokens.weight") == torch.float32
    assert len(states) == 28 and set(states.values()) == {torch.uint8}
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"quantize": "nf5"}, "quantize: unknown value 'nf5'; did you mean 'nf4'"),
        ({"lora": None}, "quantize 'nf4' without lora: quantised weights cannot be trained; add lora"),
        ({"guard": True}, "quantize 'nf4' with guard: the language model is not loaded"),
        ({"rules": {r"base\..*": 1e-5, ".*": None}}, "q_proj.base_layer.weight', which is quantised; freeze it with null"),
        ({"rules": {".*_norm.*|.*layernorm.*": 1e-5, **FROZEN}}, "norm.weight', which would not be saved; freeze it with null"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(bases, data, tmp_path, change, message):
    made = read(data, tmp_path / "run", bases["llava"])
    values = {name: getattr(made, name) for name in made.__dataclass_fields__}
    with pytest.raises(ConfigError, match=message):
        prepare(TrainConfig(**{**values, **change}))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["stage.yaml"]


def test_without_bitsandbytes_the_remedy_is_told(bases, qlora, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for load in (lambda: build(read(data, tmp_path, bases["llava"])), lambda: checkpoint.load(qlora)):
        with pytest.raises(ConfigError, match="quantize 'nf4' needs bitsandbytes.*pip install bitsandbytes"):
            load()


def test_a_record_of_another_kind_and_an_unknown_dtype_are_refused(qlora, tmp_path):
    with pytest.raises(ConfigError, match="dtype 'float23': did you mean 'float32'"):
        checkpoint.load(qlora, dtype="float23")
    for change, message in (({"kind": "nf5"}, "did you mean 'nf4'"), ({"compte": "float32"}, "did you mean 'compute'")):
        with pytest.raises(ConfigError, match=message):
            Quantization.from_dict({"kind": "nf4", **change})


def test_the_shipped_stage_takes_steps_of_128_rows():
    path = Path(__file__).parents[1] / "train" / "configs" / "stage2_qlora.yaml"
    made = read_config(["--config", str(path), "--data.root", "x"])
    assert made.quantize == "nf4" and made.lora == LoraConfig(256, 16, 0.05) and made.trainer["optim"] == "paged_adamw_8bit"
    assert made.trainer["per_device_train_batch_size"] * made.trainer["gradient_accumulation_steps"] == 128
