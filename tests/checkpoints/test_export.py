import json

import pytest
import torch
from helpers.exchanges import FOR_EXPORT, greedy
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from safety_modules import SafePipeline, Taxonomy
from safety_modules.checkpoints.export import export
from safety_modules.checkpoints.format import CheckpointError
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.save import save_safety
from safety_modules.config import ConfigError
from safety_modules.files import fresh_folder
from safety_modules.taxonomy import TaxonomyError


def test_contract_2_the_export_is_a_stock_model_with_the_same_answers(trained, tmp_path):
    output = export(trained, tmp_path / "export")
    source = load(trained, merge=False)
    stock, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    processor = AutoProcessor.from_pretrained(output)
    first = source.processor.safety_ids[0]
    for exchange in FOR_EXPORT:
        tokens, inputs = greedy(source, exchange)
        text = processor.apply_chat_template(exchange, add_generation_prompt=True)
        images = [part["image"] for part in exchange[0]["content"] if part["type"] == "image"]
        theirs = processor(text=text, images=images or None, return_tensors="pt")
        assert theirs["input_ids"].tolist() == inputs["input_ids"].tolist()
        with torch.no_grad():
            our_logits, their_logits = source.base(**inputs).logits[..., :first], stock(**theirs).logits[..., :first]
        assert torch.allclose(our_logits, their_logits, atol=1e-5 * our_logits.abs().max())
        answer = stock.generate(**theirs, max_new_tokens=8, do_sample=False)[0, theirs["input_ids"].shape[1] :]
        assert answer.tolist() == tokens
        assert SafePipeline(load(output)).answer([exchange], [""], 8) == source.processor.decode([tokens])


def test_the_export_never_emits_a_placeholder_even_where_suppression_is_ignored(trained, tmp_path):
    output = export(trained, tmp_path / "export")
    stock = AutoModelForImageTextToText.from_pretrained(output)
    source = load(trained)
    assert stock.generation_config.suppress_tokens == [source.processor.image_token_id, *source.processor.safety_ids]
    _, inputs = greedy(source, FOR_EXPORT[0])
    with torch.no_grad():
        logits = stock(**inputs).logits[0]
    first = source.processor.safety_ids[0]
    assert (logits[:, first:].amax(-1) < logits[:, :first].amax(-1)).all()


def test_the_export_has_the_hub_layout_and_only_safetensors(trained, tmp_path):
    output = export(trained, tmp_path / "export")
    with safe_open(output / "model.safetensors", "pt") as file:
        vision = [key for key in file.keys() if "vision_tower" in key]
    assert vision and all("vision_tower.vision_model." in key for key in vision)
    suffixes = {path.suffix for path in output.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".yaml", ".jinja", ".md"}
    assert "auto_map" not in json.loads((output / "config.json").read_text())
    assert "privacy" in (output / "README.md").read_text()


def test_the_exported_head_judges_as_the_trained_one(trained, tmp_path):
    before = SafePipeline(load(trained)).assess(FOR_EXPORT)
    after = SafePipeline(load(export(trained, tmp_path / "export"))).assess(FOR_EXPORT)
    for a, b in zip(before, after):
        assert all(abs(a.types[name] - b.types[name]) < 1e-5 for name in a.types)


def test_contract_9_save_and_load_are_exact(model, base, tmp_path):
    with fresh_folder(tmp_path / "m") as folder:
        save_safety(model, folder, str(base))
    loaded = load(tmp_path / "m")
    assert loaded.safety_config == model.safety_config and loaded.taxonomy == model.taxonomy
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items()):
        assert torch.equal(a, b), name


def test_contract_9_another_taxonomy_is_refused_with_both_printed(trained):
    data = Taxonomy.default().to_dict()
    data["types"]["weapons"] = {"level": 3, "hint": "weapons"}
    with pytest.raises(TaxonomyError, match=r"(?s)Its own:.*privacy.*Asked for:.*weapons"):
        load(trained, taxonomy=Taxonomy.from_dict(data))


@pytest.mark.parametrize("name", ["config.json", "taxonomy.yaml", "model.safetensors"])
def test_a_missing_file_is_named(trained, name):
    (trained / "safety" / name).unlink()
    with pytest.raises(CheckpointError, match=f"no file safety/{name}"):
        load(trained)


def test_contract_9_damaged_and_partial_weights_are_refused(trained):
    weights = trained / "safety" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="model.safetensors: cannot be read"):
        load(trained)
    meta = json.loads((trained / "safety" / "config.json").read_text())
    weights.write_bytes(whole)
    meta["safety"]["head_tokens"] = 9
    (trained / "safety" / "config.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="its weights do not fit"):
        load(trained)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda meta: meta["safety"].update(llm_token=3), "did you mean 'llm_tokens'"),
        (lambda meta: meta.pop("base"), "base: is missing"),
        (lambda meta: meta.update(vision_width="wide"), "vision_width: 'wide'"),
    ],
)
def test_contract_9_a_damaged_config_is_an_error(trained, change, message):
    path = trained / "safety" / "config.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match=f"config.json: .*{message}"):
        load(trained)


@pytest.mark.parametrize("change", [lambda keys: keys.popitem(), lambda keys: keys.update(more=torch.zeros(1))])
def test_contract_9_a_missing_and_an_extra_weight_are_refused(trained, change):
    weights = trained / "safety" / "model.safetensors"
    keys = load_file(weights)
    change(keys)
    save_file(keys, weights)
    with pytest.raises(CheckpointError, match="its weights do not fit"):
        load(trained)


def test_a_base_that_has_moved_is_named(trained, tmp_path):
    meta = json.loads((trained / "safety" / "config.json").read_text())
    moved = meta["base"]
    meta["base"] = str(tmp_path / "gone")
    (trained / "safety" / "config.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="gone.*pass its place as base="):
        load(trained)
    assert load(trained, base=moved)


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), fresh_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
