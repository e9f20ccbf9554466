import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import torch
from transformers import set_seed
from transformers.models.llama.modeling_llama import LlamaModel

from data_recipes._rows import Rows
from safety_modules import checkpoint
from safety_modules.config import ConfigError
from safety_modules.pipeline import ASSESS
from train.config import read_config
from train.data import Collator, Exchanges
from train.features import FeatureStore
from train.guard import FeatureCollator, Features
from train.mixture import read_train
from train.run import build, train


@pytest.fixture
def config(base, tmp_path):
    """A guard stage on rows with no, one and two pictures, one of them in two turns."""
    root = tmp_path / "data"
    root.mkdir()
    lines = []
    for i in range(9):
        tiny.picture(i, (30 + 10 * i, 40)).save(root / f"{i}.png")
        images = ([], [f"{i}.png"], [f"{i}.png", f"{(i + 1) % 8}.png"])[i % 3]
        label = "privacy" if i % 2 else "clean"
        lines.append({"image": images, "question": "what is it" + "?" * i, "answer": "a red key", "risk_type": label})
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "base": str(base),
        "output": str(tmp_path / "run"),
        "guard": True,
        "safety": tiny.safety_config().to_dict(),
        "data": {"root": str(root), "train": [{"recipe": "custom"}], "features": str(tmp_path / "features")},
        "rules": {r"safety\.llm_tokens\..*": None, r"safety\..*": 1e-2, r"base\..*": None},
        "trainer": {"max_steps": 2, "per_device_train_batch_size": 3, "report_to": "none"},
    }
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(values))
    return read_config(["--config", str(path)])


def stored(rows, model, config):
    """The rows with features of the folder."""
    pictures = [image for sample in rows.samples for image in sample.images]
    return Features(rows, FeatureStore.compute(model, pictures, config.data.features))


def test_stored_features_give_the_scores_of_the_pictures(config):
    model, _ = build(config)
    rows = Exchanges(read_train(config.data, model.taxonomy, 0)[0], model.processor, model.taxonomy, config.data)
    for _ in range(2):  # made, then read from the disk
        features = stored(rows, model, config)
        batches = [
            Collator(model.processor)([rows[i] for i in range(9)]),
            FeatureCollator(model.processor)([features[i] for i in range(9)]),
        ]
        with torch.no_grad():
            scores = [model(**{name: batch[name] for name in (*ASSESS, "features") if name in batch}) for batch in batches]
        assert torch.allclose(scores[0].type_logits, scores[1].type_logits, atol=0.03)  # stored as bfloat16
        assert torch.equal(batches[0]["risk_type"], batches[1]["risk_type"])
        assert torch.equal(batches[0]["input_ids"][:, 0], batches[1]["input_ids"][:, 0])  # the paper's query
    assert len(list(Path(config.data.features).glob("*/*.safetensors"))) == 1


def test_a_row_is_tokenised_once_and_its_features_stay_in_bfloat16(config, monkeypatch):
    model, _ = build(config)
    rows = Exchanges(read_train(config.data, model.taxonomy, 0)[0], model.processor, model.taxonomy, config.data)
    features = stored(rows, model, config)
    first = [features[i] for i in range(9)]
    monkeypatch.setattr(model.processor, "encode", lambda *_, **__: pytest.fail("a row is encoded again"))
    monkeypatch.setattr(Rows, "__getitem__", lambda *_: pytest.fail("a row is read again"))
    for row, again in zip(first, [features[i] for i in range(9)]):
        assert row.keys() == again.keys() and all(torch.equal(row[name], again[name]) for name in row)
    assert FeatureCollator(model.processor)(first)["features"].dtype == torch.bfloat16
    assert all(row.tokens.nbytes == 8 * len(first[i]["input_ids"]) for i, row in features.encoded.items())


def test_a_changed_picture_has_its_features_made_anew(config):
    model, _ = build(config)
    rows = Exchanges(read_train(config.data, model.taxonomy, 0)[0], model.processor, model.taxonomy, config.data)
    before = stored(rows, model, config)[1]["features"]
    tiny.picture(77).save(Path(config.data.root) / "1.png")
    assert not torch.equal(before, stored(rows, model, config)[1]["features"])


def test_guard_trains_the_head_and_never_loads_the_language_model(config, monkeypatch):
    monkeypatch.setattr(LlamaModel, "forward", lambda *_, **__: pytest.fail("the language model ran"))
    set_seed(42)  # the stage's own
    start, _ = build(config)
    assert not any("language_model.layers" in name or "lm_head" in name for name in start.state_dict())
    trained = checkpoint.load(train(config), language_model=False)
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    assert any(name.startswith("safety.head.") for name in moved) and any(name.startswith("safety.projector.") for name in moved)
    assert "safety.llm_tokens.weight" not in moved and not any(name.startswith("base.") for name in moved)


def test_guard_refuses_to_train_what_it_does_not_run(config):
    rules = {r"safety\..*": 1e-2, r"base\..*": None}
    with pytest.raises(ConfigError, match="the language model is not run, so 'safety.llm_tokens.weight' cannot be trained"):
        train(dataclasses.replace(config, rules=rules))
