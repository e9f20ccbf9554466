import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers import tiny
from transformers import set_seed
from transformers.models.llama.modeling_llama import LlamaModel

from data_recipes.core.rows import Rows
from safety_modules import SafeVLM
from safety_modules.checkpoints.load import load
from safety_modules.config import ConfigError
from safety_modules.model.packing import enable_packing
from safety_modules.pipeline import ASSESS
from train.build import load_model
from train.config import read_config
from train.data.dataset import Collator, ExchangeDataset
from train.data.head_only import FeatureDataset, collate_features
from train.data.mixture import read_train
from train.features.store import FeatureStore
from train.loop.trainer import TARGETS
from train.run import train


@pytest.fixture
def config(base, tmp_path):
    """A head-only stage on rows with no, one and two images, one of them in two turns."""
    root = tmp_path / "data"
    root.mkdir()
    lines = []
    for i in range(9):
        tiny.image(i, (30 + 10 * i, 40)).save(root / f"{i}.png")
        images = ([], [f"{i}.png"], [f"{i}.png", f"{(i + 1) % 8}.png"])[i % 3]
        label = "privacy" if i % 2 else "clean"
        lines.append({"image": images, "question": "what is it" + "?" * i, "answer": "a red key", "risk_type": label})
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "base": str(base),
        "output": str(tmp_path / "run"),
        "head_only": True,
        "safety": vars(tiny.safety_config()),
        "data": {"root": str(root), "train": [{"recipe": "custom"}], "features": str(tmp_path / "features")},
        "rules": {r"safety\.llm_tokens\..*": None, r"safety\..*": 1e-2, r"base\..*": None},
        "trainer": {"max_steps": 2, "per_device_train_batch_size": 3, "report_to": "none"},
    }
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(values))
    return read_config(["--config", str(path)])


def stored(rows, model, config):
    """The rows with features of the folder."""
    images = [image for sample in rows.samples for image in sample.images]
    return FeatureDataset(rows, FeatureStore.compute(model, images, config.data.features))


def test_stored_features_give_the_scores_of_the_images(config):
    model = load_model(config)
    rows = ExchangeDataset(read_train(config.data, model.taxonomy, 0)[0], model.processor, model.taxonomy, config.data)
    for _ in range(2):  # computed, then read from the disk
        features = stored(rows, model, config)
        batches = [
            Collator(model.processor)([rows[i] for i in range(9)]),
            collate_features([features[i] for i in range(9)]),
        ]
        with torch.no_grad():
            scores = [
                model(**{name: batch[name] for name in (*ASSESS, "features") if name in batch}) for batch in batches
            ]
        assert torch.allclose(scores[0].type_logits, scores[1].type_logits, atol=0.03)  # stored as bfloat16
        assert torch.equal(batches[0]["risk_type"], batches[1]["risk_type"])
        assert torch.equal(
            batches[0]["head_inputs"].first_ids, batches[1]["head_inputs"].first_ids
        )  # the paper's query
    assert len(list(Path(config.data.features).glob("*/*.safetensors"))) == 1


def test_a_row_is_tokenised_once_and_its_features_stay_in_bfloat16(config, monkeypatch):
    model = load_model(config)
    rows = ExchangeDataset(read_train(config.data, model.taxonomy, 0)[0], model.processor, model.taxonomy, config.data)
    features = stored(rows, model, config)
    first = [features[i] for i in range(9)]
    monkeypatch.setattr(model.processor, "encode", lambda *_, **__: pytest.fail("a row is encoded again"))
    monkeypatch.setattr(Rows, "__getitem__", lambda *_: pytest.fail("a row is read again"))
    for row, again in zip(first, [features[i] for i in range(9)]):
        assert row.keys() == again.keys() and all(torch.equal(row[name], again[name]) for name in row if name != "row")
    assert collate_features(first)["features"].dtype == torch.bfloat16
    assert all(row.tokens.nbytes == 8 * len(first[i]["input_ids"]) for i, row in features.encoded.items())


def test_a_changed_image_has_its_features_computed_again(config):
    model = load_model(config)
    rows = ExchangeDataset(read_train(config.data, model.taxonomy, 0)[0], model.processor, model.taxonomy, config.data)
    before = stored(rows, model, config)[1]["features"]
    tiny.image(77).save(Path(config.data.root) / "1.png")
    assert not torch.equal(before, stored(rows, model, config)[1]["features"])


def test_head_only_trains_the_head_and_never_loads_the_language_model(config, monkeypatch):
    monkeypatch.setattr(LlamaModel, "forward", lambda *_, **__: pytest.fail("the language model ran"))
    set_seed(42)  # the stage's own
    start = load_model(config)
    assert not any("language_model.layers" in name or "lm_head" in name for name in start.state_dict())
    trained = load(train(config), language_model=False)
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    assert any(name.startswith("safety.head.") for name in moved) and any(
        name.startswith("safety.projector.") for name in moved
    )
    assert "safety.llm_tokens.weight" not in moved and not any(name.startswith("base.") for name in moved)


def test_head_only_cannot_train_what_it_does_not_run(config):
    rules = {r"safety\..*": 1e-2, r"base\..*": None}
    with pytest.raises(
        ConfigError, match="the language model is not run, so 'safety.llm_tokens.weight' cannot be trained"
    ):
        train(dataclasses.replace(config, rules=rules))


def test_stored_features_train_the_language_model_too_as_the_images_do(config, tmp_path):
    """Every stage may read them: the same batches but for what stands for the images."""
    model = load_model(config)
    samples = read_train(config.data, model.taxonomy, 0)[0]
    model = SafeVLM.attach(config.base, config.safety).eval()
    rows = ExchangeDataset(samples, model.processor, model.taxonomy, config.data)
    store = stored(rows, model, config).store
    cached = ExchangeDataset(samples, model.processor, model.taxonomy, config.data, store=store)
    for packing in (False, True):
        if packing:
            enable_packing(model.base)
        one, other = (Collator(model.processor, packing)([data[i] for i in range(9)]) for data in (rows, cached))
        assert "pixel_values" not in other and torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["head_inputs"].units, other["head_inputs"].units)
        with torch.no_grad():
            a, b = (model(**{k: v for k, v in batch.items() if k not in TARGETS}) for batch in (one, other))
        assert (a.logits - b.logits).abs().mean() < 0.02 * a.logits.std()  # stored in bfloat16
        assert torch.allclose(a.type_logits, b.type_logits, atol=0.03)


def test_stage_1_reads_stored_features_and_cannot_train_their_tower(config):
    rules = {r"safety\..*": 1e-2, r"base\..*": None}
    whole = dataclasses.replace(config, head_only=False, rules=rules)
    final = train(whole)
    assert load(final) and list(Path(config.data.features).glob("*/*.safetensors"))
    tower = {r"base\.model\.vision_tower\..*": 1e-5, **rules}
    with pytest.raises(ConfigError, match="data.features: .* but 'base.model.vision_tower"):
        train(dataclasses.replace(whole, rules=tower))
