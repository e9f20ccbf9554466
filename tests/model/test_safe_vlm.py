import pytest
import torch
from helpers import tiny
from helpers.exchanges import OF_ALL_KINDS
from transformers import AutoModelForImageTextToText, AutoProcessor

from safety_modules import SafePipeline, SafetyConfig, SafeVLM, Taxonomy, ask
from safety_modules.config import ConfigError
from safety_modules.model.modules import SafetyModules
from safety_modules.pipeline import ASSESS
from safety_modules.prompt.head_inputs import HeadInputs

FORWARD = (*ASSESS, "input_ids", "attention_mask")
GENERATE = ("input_ids", "attention_mask", "pixel_values", "image_sizes")


def batch_of(model, exchanges, side="left"):
    rows = [model.processor.encode(messages, answer="a red key") for messages in exchanges]
    return model.processor.collate(rows, side=side)


def scores(model, exchanges):
    batch = batch_of(model, exchanges)
    return model.assess(**{name: batch[name] for name in ASSESS if name in batch})


def test_contract_1_without_placeholders_it_is_the_base_bit_for_bit(base, model):
    stock = AutoModelForImageTextToText.from_pretrained(base).eval()
    processor = AutoProcessor.from_pretrained(base)
    optimizer = torch.optim.SGD(model.safety.parameters(), lr=0.1)
    batch = batch_of(model, OF_ALL_KINDS, side="right")
    output = model(**{name: batch[name] for name in FORWARD if name in batch})
    (
        output.logits.square().mean() + output.type_logits.square().mean() + output.level_logits.square().mean()
    ).backward()
    optimizer.step()
    inputs = processor(text="USER: <image>\nwhat is this? ASSISTANT:", images=[tiny.image(1)], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, model.base(**inputs).logits)
    text = processor(text="USER: hello ASSISTANT:", return_tensors="pt")
    # a random base may emit one of its unused rows, whose ids are the placeholders'; a trained one does not
    limits = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": model.placeholders()}
    assert torch.equal(stock.generate(**text, **limits), model.base.generate(**text, **limits))


def test_safety_tokens_change_the_answer_to_an_image(model):
    batch = batch_of(model, OF_ALL_KINDS[:1])
    inputs = {name: batch[name] for name in FORWARD if name in batch}
    with torch.no_grad():
        before = model(**inputs).logits
        model.safety.llm_tokens.weight += 1.0
        assert not torch.allclose(before, model(**inputs).logits, atol=1e-3)


def test_contract_8_assessment_does_not_depend_on_mates_padding_or_order(model):
    together = scores(model, OF_ALL_KINDS)
    for order in ([2, 0, 1], [0], [1], [2], [1, 0]):
        apart = scores(model, [OF_ALL_KINDS[i] for i in order])
        for some, whole in zip(apart, together):
            assert torch.allclose(some, whole[order], atol=1e-5)
    batch = batch_of(model, OF_ALL_KINDS, side="right")
    right = model.assess(**{name: batch[name] for name in ASSESS if name in batch})
    assert torch.allclose(right.type_logits, together.type_logits, atol=1e-5)


def test_forward_and_assess_agree_and_assess_runs_no_language_model(model):
    batch = batch_of(model, OF_ALL_KINDS)
    inputs = {name: batch[name] for name in FORWARD if name in batch}
    with torch.no_grad():
        output = model(**inputs)
    calls = []
    model.base.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    scored = model.assess(**{name: batch[name] for name in ASSESS if name in batch})
    assert calls == []
    assert torch.allclose(output.type_logits, scored.type_logits, atol=1e-5)
    assert torch.allclose(output.level_logits, scored.level_logits, atol=1e-5)


def test_of_several_images_the_riskiest_counts(model):
    images = [tiny.image(seed) for seed in range(3)]
    one = torch.cat([scores(model, [ask("q", [image])]).type_logits for image in images])
    all_ = scores(model, [ask("q", images)]).type_logits[0]
    clean = model.taxonomy.clean_index
    risk = 1 - one.softmax(-1)[:, clean]
    assert torch.allclose(all_, one[risk.argmax()], atol=1e-5)


@pytest.mark.parametrize("query,differs", [("joint", True), ("image", False), ("paper", False)])
def test_only_joint_reads_the_question(base, query, differs):
    torch.manual_seed(0)
    model = SafeVLM.attach(base, tiny.safety_config(query=query)).eval()
    a, b = (
        scores(model, [ask(text, [tiny.image(1)])]).type_logits for text in ("what colour is it?", "two blue stars")
    )
    assert torch.allclose(a, b, atol=1e-6) is not differs
    other = scores(model, [ask("what colour is it?", [tiny.image(5)])]).type_logits
    assert not torch.allclose(a, other, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"projector": "mlp"},
        {"projector_grid": 2},
        {"llm_tokens": 0},
        {"head_tokens": 0},
        {"head_tokens": 0, "query": "image"},
    ],
)
def test_every_shape_of_the_modules_works(base, changes):
    model = SafeVLM.attach(base, tiny.safety_config(**changes)).eval()
    result = SafePipeline(model)(OF_ALL_KINDS, max_new_tokens=2)
    assert [len(row.assessment.types) for row in result] == [7, 7, 7]
    assert all(abs(sum(row.assessment.types.values()) - 1) < 1e-5 for row in result)


def test_generate_never_gives_a_placeholder(model):
    with torch.no_grad():
        model.base.get_output_embeddings().weight[model.placeholders()] *= 100
    batch = batch_of(model, OF_ALL_KINDS)
    inputs = {name: batch[name] for name in GENERATE if name in batch}
    ids = model.generate(**inputs, max_new_tokens=8)
    assert not set(ids.flatten().tolist()) & set(model.placeholders())


def test_widths_come_from_the_base_and_a_width_that_does_not_fit_is_an_error(base):
    with pytest.raises(ConfigError, match="attention_heads: 7 does not divide the language width 64"):
        SafeVLM.attach(base, tiny.safety_config(attention_heads=7))


def test_the_real_shapes_are_the_papers_size():
    with torch.device("meta"):
        small = SafetyModules(SafetyConfig(), Taxonomy.default(), 1024, 4096)
        large = SafetyModules(SafetyConfig(), Taxonomy.default(), 1024, 5120)
    count = sum(parameter.numel() for parameter in small.parameters())
    assert 95e6 < count < 115e6  # PSA-VLM: about 108 M
    assert large.head.queries.shape == (2, 5120)


def test_readings_are_all_turns_and_each_alone_with_each_image():
    rows = [
        {
            "input_ids": torch.tensor([9, 1, 2, 8]),
            "question_mask": torch.tensor([0, 1, 1, 0]),
            "tiles": torch.tensor([1, 2]),
        },
        {
            "input_ids": torch.tensor([9, 3, 8, 4, 5]),
            "question_mask": torch.tensor([0, 1, 0, 2, 2]),
            "tiles": torch.tensor([1]),
        },
        {
            "input_ids": torch.tensor([7, 6]),
            "question_mask": torch.tensor([0, 0]),
            "tiles": torch.tensor([], dtype=torch.long),
        },
    ]
    inputs = HeadInputs.of(rows)
    assert inputs.first_ids.tolist() == [9, 9, 7]
    readings = [ids[mask].tolist() for ids, mask in zip(inputs.question_ids, inputs.question_mask)]
    assert readings == [[1, 2], [3, 4, 5], [3], [4, 5], []]
    assert inputs.units.tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 3, 1], [2, 3, 1], [3, 3, 1], [4, -1, 2]]


def test_of_several_turns_the_riskiest_reading_counts(model):
    first, last = ask("what is this?", [tiny.image(1)]), ask("two blue stars, one green house")
    talk = [*first, {"role": "assistant", "content": "a red key"}, *last]
    alone = scores(
        model, [ask("what is this?", [tiny.image(1)]), ask("two blue stars, one green house", [tiny.image(1)])]
    )
    together = scores(model, [talk])
    clean = model.taxonomy.clean_index
    risk = 1 - torch.cat([alone.type_logits, together.type_logits]).softmax(-1)[:, clean]
    assert risk[2] >= risk[:2].max() - 1e-5
    mixed = scores(model, [talk, OF_ALL_KINDS[0], OF_ALL_KINDS[2]])
    assert torch.allclose(mixed.type_logits[0], together.type_logits[0], atol=1e-5)
    assert torch.allclose(
        mixed.type_logits[1:], scores(model, [OF_ALL_KINDS[0], OF_ALL_KINDS[2]]).type_logits, atol=1e-5
    )


def test_features_in_place_of_images_judge_the_same_without_the_language_model(model):
    batch = batch_of(model, OF_ALL_KINDS)
    inputs = {name: batch[name] for name in ASSESS if name in batch}
    expected = model.assess(**inputs)
    sizes = inputs.get("image_sizes")
    features = model.vision_features(inputs.pop("pixel_values"), sizes)
    model.base.model.language_model.register_forward_pre_hook(lambda *_: pytest.fail("the language model ran"))
    output = model(**inputs, features=features)
    assert output.logits is None and torch.allclose(output.type_logits, expected.type_logits, atol=1e-6)


def test_an_assessment_runs_neither_the_bases_projector_nor_its_language_model(model, monkeypatch):
    batch = batch_of(model, OF_ALL_KINDS)
    expected = model(**{name: batch[name] for name in FORWARD if name in batch}).type_logits
    with monkeypatch.context() as patched:
        for part in (model.base.get_submodule(model.backbone.projector), model.base.model.language_model):
            patched.setattr(part, "forward", lambda *_, **__: pytest.fail("it ran"))
        assert torch.allclose(scores(model, OF_ALL_KINDS).type_logits, expected, atol=1e-6)
    assert torch.equal(model(**{name: batch[name] for name in FORWARD if name in batch}).type_logits, expected)
