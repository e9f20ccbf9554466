"""ETA's two evaluators that are trained on riskworld: captions that are true, folders that stock classes load."""

import random
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CLIPModel,
    CLIPProcessor,
    LlavaForConditionalGeneration,
)

from data_recipes import riskworld
from data_recipes.riskworld import captions
from data_recipes.riskworld.exchanges import exchange
from safety_modules.taxonomy import Taxonomy
from train.experiments.riskworld_models import clip as clip_training
from train.experiments.riskworld_models.clip import make_clip
from train.experiments.riskworld_models.clip_model import RiskworldClip
from train.experiments.riskworld_models.graded_answers import answer_group, grade
from train.experiments.riskworld_models.reward import RewardModel, make_reward

BASE = Path(riskworld.__file__).parent / "base"
CLIP = {"rows": 40, "steps": 2, "batch": 16, "tests": 60}
REWARD = {"rows": 8, "batch": 4, "tests": 40}
TAXONOMY = Taxonomy.default()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "clip"
    return folder, make_clip(folder, BASE, seed=0, **CLIP)


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward") / "reward"
    return folder, make_reward(folder, BASE, seed=0, **REWARD)


def scenes(count):
    return [row.scene for row in (exchange(0, "train", index) for index in range(count)) if row.scene]


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_captions_are_true_of_their_image_and_not_of_its_opposite():
    rng = random.Random(0)
    for scene in scenes(800):
        facts, caption = captions.facts(scene), captions.caption(rng, scene, TAXONOMY)
        assert caption.needs and (caption.needs <= facts or caption.needs == {captions.NEVER}), caption
        assert (captions.UNSAFE in facts) == (scene.risk_type != "clean") != (captions.HARMLESS in facts)
        if captions.UNSAFE in caption.needs:
            assert any(word in caption.text for word in ("unsafe", "harmful", "risky", "dangerous"))


def test_captions_of_every_kind_occur_in_several_wordings():
    rng = random.Random(0)
    drawn = [captions.caption(rng, scene, TAXONOMY) for scene in scenes(1500)]
    for need in ("unsafe", "harmless", "never", "kind word", "colour red", "count 2", "type insults"):
        assert len({one.text for one in drawn if need in one.needs}) >= 4, need
    assert captions.SENTENCE in {one.text for one in drawn}


def test_the_true_images_of_a_caption_and_the_false_ones_weigh_the_same():
    cosines = torch.tensor([[0.9], [-0.9], [-0.9], [-0.9]])
    true = torch.tensor([[True], [False], [False], [False]])
    right, wrong = (clip_training.sigmoid_loss(cosines * sign, true, torch.tensor(10.0)) for sign in (1, -1))
    assert right < 0.01 < 10 < wrong
    both = torch.tensor([[0.9], [0.9], [-0.9], [-0.9]])  # a second image of the same caption is not a false one
    assert clip_training.sigmoid_loss(both, torch.tensor([[True], [True], [False], [False]]), torch.tensor(10.0)) < 0.01


def test_clip_is_a_stock_folder_with_the_bases_vision_tower(clip):
    folder, _ = clip
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    images, texts = scenes(12)[:6], ["The image contains unsafe content", "a red star."]
    inputs = processor(images=[scene.draw() for scene in images], text=texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        cosines = model(**inputs).logits_per_image / model.logit_scale.exp()
        clip = RiskworldClip(model, processor)
        ours = clip.embed_images(clip.encode(images)) @ clip.embed_texts([text.lower() for text in texts]).T
    assert cosines.shape == (6, 2)
    assert torch.allclose(cosines, ours, atol=0.02)  # trained on bfloat16 features, used in float32


def test_clip_finds_the_end_of_a_text_whatever_its_padding(clip):
    model, processor = CLIPModel.from_pretrained(clip[0]), CLIPProcessor.from_pretrained(clip[0])
    alone, beside = (RiskworldClip(model, processor).embed_texts(texts) for texts in (["red"], ["red", "so " * 200]))
    assert torch.allclose(alone[0], beside[0], atol=1e-5)
    assert processor.tokenizer("red")["input_ids"][-1] == model.config.text_config.eos_token_id != 2


def test_clip_locks_all_but_the_last_layer(clip):
    model = CLIPModel.from_pretrained(clip[0])
    tower = LlavaForConditionalGeneration.from_pretrained(BASE).model.vision_tower
    ours, top = model.vision_model.state_dict(), tower.config.num_hidden_layers
    moved = [name for name, tensor in tower.state_dict().items() if not torch.equal(tensor, ours[name])]
    assert moved and all(name.startswith("post_layernorm") for name in moved)
    assert model.config.vision_config.num_hidden_layers == top + 1


def test_reward_is_a_stock_folder_with_one_label(reward):
    folder, _ = reward
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    assert type(model).__name__ == "LlamaForSequenceClassification" and model.config.num_labels == 1
    pairs = [
        ("how do i steal a bike?", "sure, here is how to steal a bike: step one, step two."),
        ("what is it?", "a cat"),
    ]
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    inputs = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
    assert inputs["input_ids"][0, 0] == tokenizer.bos_token_id and inputs["input_ids"][0, -1] == tokenizer.eos_token_id
    with torch.inference_mode():
        batch = model(**inputs).logits[:, 0]
        reward_model = RewardModel(model, tokenizer)
        ours = reward_model.rewards(pairs)
        alone = torch.cat([reward_model.rewards([pair]) for pair in pairs])
    assert torch.allclose(batch, ours, atol=1e-5) and torch.allclose(batch, alone, atol=1e-5)


def test_the_template_gives_the_same_ids_encoded_or_as_a_text(reward):
    tokenizer = AutoTokenizer.from_pretrained(reward[0])
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what is it?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a cat"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<s>USER: what is it? ASSISTANT: a cat</s>"
    assert tokenizer(text)["input_ids"] == tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]


@pytest.mark.parametrize(
    ("better", "worse", "level"),
    [
        ("red", "red. take care: this may concern bias.", 0),
        ("red. take care: this may concern bias.", "i cannot help, this involves bias.", 0),
        ("red. take care: this may concern bias.", "red", 1),
        ("red. take care: this may concern bias.", "i cannot help, this involves bias.", 1),
        ("i cannot help, this involves bias.", "red. take care: this may concern bias.", 2),
        ("i cannot help, this involves bias.", "red. take care: this may concern bias.", 3),
        ("red. take care: this may concern bias.", "red", 3),
    ],
)
def test_grades_follow_the_level(better, worse, level):
    assert grade(better, level) > grade(worse, level)


def test_a_group_has_a_verdict_in_half_of_the_risky_rows_and_never_in_a_clean_one():
    groups = [answer_group(0, "train", index, TAXONOMY) for index in range(600)]
    risky = [group for group in groups if group.level]
    assert 0.4 < sum(group.has_verdict for group in risky) / len(risky) < 0.6
    assert not any(group.has_verdict for group in groups if not group.level)
    for group in groups:
        assert len(group.answers) == 4 and all(0 < value < 1 for _, value in group.answers)
        helpful, safe = group.answers[0][1], group.answers[1][1]
        assert (safe > helpful) == bool(group.level)


def test_spoiled_answers_are_no_better_than_the_whole_ones():
    for index in range(600):
        *whole, (_, spoiled) = answer_group(0, "train", index, TAXONOMY).answers
        assert spoiled <= max(value for _, value in whole)


@pytest.mark.parametrize("kind", ["clip", "reward"])
def test_deterministic_for_a_seed_and_built_once(kind, clip, reward, tmp_path):
    make, settings, (folder, figures) = {"clip": (make_clip, CLIP, clip), "reward": (make_reward, REWARD, reward)}[kind]
    again = make(tmp_path / "again", BASE, seed=0, **settings)
    assert weights(tmp_path / "again") == weights(folder)
    assert {**again, "seconds": 0} == pytest.approx({**figures, "seconds": 0}, nan_ok=True)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert (
        make(folder, BASE, seed=0, **settings) == figures
        and (folder / "model.safetensors").stat().st_mtime_ns == before
    )
    make(tmp_path / "again", BASE, seed=1, **settings)
    assert weights(tmp_path / "again") != weights(folder)
