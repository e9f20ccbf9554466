"""Merging adapters into a quantised base: the dequantised weights, and what the report says."""

import gc
import json
import weakref

import pytest
import torch
from helpers import tiny
from helpers.exchanges import FOR_EXPORT, greedy
from helpers.quantized_models import adapted, places
from transformers import AutoModelForImageTextToText

from safety_modules.checkpoints.export import export
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.merge_report import Difference, MergeReport, Unmerged, probe
from safety_modules.cli.main import main
from safety_modules.model.load_base import load_base
from safety_modules.model.quantization import KINDS, dequantized, merge_quantized, quantized_layers


@pytest.fixture(scope="module", autouse=True)
def bitsandbytes():
    """Imported once, late: it takes seconds."""
    return pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def qlora(request, bases, tmp_path_factory):
    """Such a folder in nf4."""
    return adapted(bases[request.param], tmp_path_factory.mktemp("qlora") / "final", "nf4")


def test_merged_is_unmerged_and_merging_into_the_original_weights_is_not(qlora):
    unmerged = Unmerged.of(qlora)
    report = unmerged.against(load(qlora))
    assert report.quantization == "nf4" and report.positions == len(unmerged.trained) > 50
    scale = unmerged.trained.abs().max().item()
    assert report.merged.max < 1e-4 * scale and report.merged.same == 1
    assert report.onto_original.max > 0.1 * scale and report.onto_original.same < 1
    wrong = load(qlora, quantize=None)
    assert Difference.of(unmerged.trained, probe(wrong)).max == pytest.approx(report.onto_original.max, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_weight_is_the_dequantised_one_plus_the_adapter_rounded_once(bases, tmp_path, kind):
    folder = adapted(bases["llava"], tmp_path / "final", kind)
    beside = load(folder, merge=False)
    exact, rounded = load(folder), load(folder, dtype="bfloat16")
    assert {p.dtype for p in rounded.base.parameters()} == {torch.bfloat16} and rounded.base.dtype == torch.bfloat16
    beside.train()  # int8 then multiplies by W_q itself; evaluating it rounds the inputs too
    for place in places(beside):
        layer = beside.base.get_submodule(place)
        with torch.no_grad():
            expected = layer(torch.eye(layer.in_features)).T  # W_q + BA, as the layer itself computes it
        weight = exact.base.get_submodule(place).weight
        assert type(exact.base.get_submodule(place)) is torch.nn.Linear
        assert torch.allclose(weight, expected, atol=1e-5), place
        assert torch.equal(rounded.base.get_submodule(place).weight, weight.bfloat16()), place


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_leaves_the_quantised_weights_as_they_were(bases, tmp_path, kind):
    model = load(adapted(bases["llava"], tmp_path / "final", kind), merge=False)
    layers = {name: model.base.get_submodule(name) for name in quantized_layers(model.base)}
    before = {name: dequantized(layer) for name, layer in layers.items()}
    first, second = probe(model), probe(model)
    assert torch.equal(first, second)
    for name, layer in layers.items():
        assert torch.equal(dequantized(layer), before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_merging_frees_each_quantised_layer(bases, tmp_path, kind, monkeypatch):
    folder, weights, alive = adapted(bases["llava"], tmp_path / "final", kind), [], []

    def watched(model, dtype):
        weights.extend(weakref.ref(p) for p in model.parameters() if not p.is_floating_point())
        gc.collect()
        gc.disable()  # a large merge has few objects: the collector would not run
        try:
            return merge_quantized(model, dtype)
        finally:
            alive.append(sum(weight() is not None for weight in weights))
            gc.enable()

    monkeypatch.setattr("safety_modules.checkpoints.load.merge_quantized", watched)
    load(folder)
    assert len(weights) == 14 and alive == [0]


def test_a_base_in_another_dtype_is_quantised_as_in_training_and_merged_to_its_own(bases, tmp_path):
    half = load_base(bases["llava"], torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    for path in bases["llava"].iterdir():
        if not (tmp_path / "half" / path.name).exists():
            (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    folder = adapted(tmp_path / "half", tmp_path / "final", "nf4", dtype="float32")
    meta = json.loads((folder / "safety" / "config.json").read_text())
    assert load(folder, merge=False).base.dtype == torch.bfloat16 and meta["quantization"]["dtype"] == "bfloat16"
    meta["quantization"]["dtype"] = "float32"  # as a stage with `dtype: float32` leaves it
    (folder / "safety" / "config.json").write_text(json.dumps(meta))
    assert load(folder, merge=False).base.dtype == torch.float32
    assert load(folder).base.dtype == torch.bfloat16


def test_the_export_of_a_qlora_folder_is_a_stock_model_with_the_same_answers(qlora, tmp_path, capsys):
    output = tmp_path / "export"
    main(["export", str(qlora), str(output)])
    source = load(qlora, merge=False)
    stock, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for exchange in FOR_EXPORT:
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
    main(["export", str(trained), str(tmp_path / "unchecked"), "--no-check"])
    assert MergeReport.read(tmp_path / "unchecked") is None and "logits" not in capsys.readouterr().out
    assert "## Merge" not in (tmp_path / "unchecked" / "README.md").read_text()
    export(tmp_path / "unchecked", tmp_path / "again")  # no adapter: nothing was merged
    assert MergeReport.read(tmp_path / "again") is None
