"""Rows of a stage: hints, injections, images that cannot be read, images that are held out."""

import dataclasses

import pytest
from helpers import tiny

from data_recipes.core.data_config import DataConfig, Source
from data_recipes.core.held_out import fingerprint, write_fingerprints
from data_recipes.core.rows import Rows
from safety_modules import SafeVLM
from safety_modules.taxonomy import Taxonomy
from train.data.dataset import ExchangeDataset
from train.data.mixture import check_leaks, read_train

TYPES = ("privacy", "clean", "insults")
TAXONOMY = Taxonomy.default()


@pytest.fixture
def data(tmp_path):
    """Nine images with labels, one row without an image."""
    root = tmp_path / "data"
    root.mkdir()
    for i in range(9):
        tiny.image(i).save(root / f"{i}.png")
    lines = [f"{i}.png,,,{TYPES[i % 3]}," for i in range(9)]
    (root / "train.csv").write_text(
        "\n".join(["image,question,answer,risk_type,risk_level", *lines, ",what colour?,a red key,clean,0"]) + "\n"
    )
    return DataConfig(root=str(root), train=[Source("custom")])


@pytest.fixture
def processor(bases):
    return SafeVLM.attach(bases["llava"], tiny.safety_config()).processor


def test_hint_rate_is_the_fraction_of_risky_rows_with_a_hint(data, processor):
    samples = read_train(data, TAXONOMY, 0)[0]
    hints = [TAXONOMY.hints(s.risk_type, s.risk_level) if s.risk_level else [] for s in samples]
    counts, wordings = {}, set()
    for rate in (0.0, 0.5, 1.0):
        rows = ExchangeDataset(samples, processor, TAXONOMY, dataclasses.replace(data, hint_rate=rate), train=True)
        texts = [processor.tokenizer.decode(row["input_ids"]) for row in rows]
        used = [[hint for hint in of_row if hint in text] for text, of_row in zip(texts, hints)]
        counts[rate] = sum(map(bool, used))
        wordings.update(hint for of_row in used for hint in of_row)
    assert counts[0.0] == 0 < counts[0.5] < counts[1.0] == sum(map(bool, hints))
    assert len(wordings) > len({sample.risk_type for sample in samples if sample.risk_level})  # several of one hint


def test_injection_rate_is_the_fraction_of_training_rows_with_one_and_question_and_label_stay(data, processor):
    samples = list(read_train(data, TAXONOMY, 0)[0]) * 8
    samples = [dataclasses.replace(sample, source=f"{sample.source}/{i}") for i, sample in enumerate(samples)]
    half = dataclasses.replace(data, injection_rate=0.5)
    for train, low, high in ((True, 0.3, 0.7), (False, 0.0, 0.0)):
        rows = ExchangeDataset(samples, processor, TAXONOMY, half, train=train)
        texts = [rows.messages(sample)[-1]["content"][-1]["text"] for sample in samples]
        assert all(sample.question in text for sample, text in zip(samples, texts))
        assert low <= sum(sample.question != text for sample, text in zip(samples, texts)) / len(samples) <= high
        assert [rows.messages(sample) for sample in samples[:5]] == [rows.messages(sample) for sample in samples[:5]]
        assert int(rows[0]["risk_type"]) == TAXONOMY.type_index(samples[0].risk_type)


def test_a_broken_image_names_its_row(data, processor, tmp_path):
    (tmp_path / "data" / "0.png").write_text("no image")
    rows = ExchangeDataset(read_train(data, TAXONOMY, 0)[0], processor, TAXONOMY, data)
    with pytest.raises(ValueError, match=r"train.csv:2: .*0.png: not a readable image"):
        rows[0]


def test_images_of_a_test_table_and_of_a_file_of_fingerprints_are_held_out_too(data, tmp_path):
    root = tmp_path / "data"
    tiny.image(90).save(root / "test0.png")
    (root / "test.csv").write_text("image,question,answer,risk_type\ntest0.png,Q,A,clean\n")
    samples, empty = read_train(data, TAXONOMY, 0)[0], Rows.of([])
    check_leaks(data, TAXONOMY, samples, empty)
    (root / "3.png").write_bytes((root / "test0.png").read_bytes())
    with pytest.raises(ValueError, match="train.csv:5: 3.png is test0.png of custom test"):
        check_leaks(data, TAXONOMY, samples, empty)
    (root / "test.csv").unlink()
    check_leaks(data, TAXONOMY, samples, empty)
    write_fingerprints(tmp_path / "marks.csv", [fingerprint(root / "test0.png", "published")])
    with pytest.raises(ValueError, match="of published"):
        check_leaks(dataclasses.replace(data, held_out=[str(tmp_path / "marks.csv")]), TAXONOMY, samples, empty)
