"""Mixtures: weights, caps, balance, share of clean rows, and what a source leaves out."""

import hashlib
import logging
from collections import Counter

import numpy as np
import pytest
from helpers.dataset_files import TAXONOMY, images, reading, write_json
from hypothesis import given
from hypothesis import strategies as st

import data_recipes
from data_recipes.core.mixture import Part, Source, _chosen, _times, mix, total
from data_recipes.core.reading import LeftOut
from data_recipes.readers.indexed_json import JsonRows
from safety_modules.sample import DataError, Sample, Turn


@pytest.fixture
def root(tmp_path):
    """40 clean, 30 privacy, 6 politics and 4 insults."""
    for name, count in (("clean", 40), ("privacy", 30), ("politics", 6), ("insults", 4)):
        images(tmp_path / "image_folder" / name, *(f"{name}{number}.png" for number in range(count)))
    return tmp_path


def source(**options):
    return Source("image_folder", split="train+validation", **options)


def types(rows):
    return Counter(row.risk_type for row in rows)


@pytest.mark.parametrize("weight, count", [(0.5, 40), (1, 80), (2, 160), (2.25, 180)])
def test_weights_are_exact(root, weight, count):
    rows, (part,) = mix([source(weight=weight)], root, TAXONOMY)
    assert len(rows) == part.used == count and part.read == 80
    taken = Counter(row.source for row in rows)
    assert set(taken.values()) <= {int(weight), int(weight) + 1}


def test_a_source_of_weight_0_gives_nothing_and_a_mixture_needs_a_row(root):
    rows, (one, none) = mix([source(), source(weight=0)], root, TAXONOMY)
    assert (one.used, none.read, none.used, none.labels, len(rows)) == (80, 80, 0, {}, 80)
    with pytest.raises(DataError, match="the mixture has no rows; raise a weight"):
        mix([source(weight=0)], root, TAXONOMY)


@given(count=st.integers(0, 300), weight=st.floats(0, 4), seed=st.integers(0, 5))
def test_each_row_is_taken_the_weights_floor_or_ceiling_and_the_sum_is_right(count, weight, seed):
    times = _times(count, weight, f"{seed}")
    assert abs(times.sum() - count * weight) <= 0.5 + 1e-6 and set((times - int(weight)).tolist()) <= {0, 1}


@given(count=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_a_draw_takes_each_place_once_and_a_smaller_one_is_part_of_it(count, share, seed):
    few, many = (_chosen(count, wanted, f"{seed}").tolist() for wanted in (int(count * share) // 2, int(count * share)))
    assert len(many) == int(count * share) == len(set(many)) and many == sorted(many)
    assert set(few) <= set(many) <= set(range(count))


def test_a_draw_is_even_over_the_places():
    drawn = sum(np.bincount(_chosen(100, 50, f"{seed}"), minlength=100) for seed in range(400))
    assert drawn.sum() == 20_000 and 150 < drawn.min() and drawn.max() < 250


def test_a_cap_comes_before_the_weight_and_is_spread_evenly(root):
    rows, (part,) = mix([source(limit=8, weight=2)], root, TAXONOMY)
    assert part.read == 8 and len(rows) == 16 and types(rows)["clean"] == 8


def test_balance_keeps_the_number_of_risky_rows_and_moves_types_to_each_other(root):
    plain = types(mix([source()], root, TAXONOMY)[0])
    half = types(mix([source()], root, TAXONOMY, balance=0.5)[0])
    full = types(mix([source()], root, TAXONOMY, balance=1)[0])
    assert plain == {"clean": 40, "privacy": 30, "politics": 6, "insults": 4}
    assert half["clean"] == full["clean"] == 40 and abs(sum(half.values()) - 80) <= 1
    assert {full["privacy"], full["politics"], full["insults"]} <= {13, 14}
    assert plain["politics"] < half["politics"] < full["politics"]
    capped = mix([source()], root, TAXONOMY, balance=1, max_repeats=2)[0]
    assert types(capped)["insults"] == 8 and max(Counter(row.source for row in capped).values()) == 2


def test_balance_of_one_risky_type_or_none_changes_nothing(root):
    plain = mix([source(labels={"politics": None, "insults": None})], root, TAXONOMY)[0]
    assert list(plain) == list(mix([source(labels={"politics": None, "insults": None})], root, TAXONOMY, balance=1)[0])
    clean = {name: None for name in ("privacy", "politics", "insults")}
    assert types(mix([source(labels=clean)], root, TAXONOMY, balance=1)[0]) == {"clean": 40}


@pytest.mark.parametrize("share, clean, risky", [(0.2, 10, 40), (0.5, 40, 40), (0.8, 40, 10)])
def test_the_share_of_clean_rows_thins_out_one_side(root, share, clean, risky):
    found = types(mix([source()], root, TAXONOMY, clean_fraction=share)[0])
    assert found["clean"] == clean and sum(found.values()) == clean + risky


def test_a_share_of_clean_rows_needs_both_sides(root):
    with pytest.raises(DataError, match="clean_fraction 0.5 needs clean and risky rows, the mixture has 0 and 40"):
        mix([source(labels={"clean": None})], root, TAXONOMY, clean_fraction=0.5)
    with pytest.raises(DataError, match="the mixture has 40 and 0"):
        mix([source(labels={"privacy": None, "politics": None, "insults": None})], root, TAXONOMY, clean_fraction=0.5)


def test_the_same_seed_gives_the_same_rows_and_another_one_others(root):
    def drawn(seed):
        return [row.source for row in mix([source(weight=0.5)], root, TAXONOMY, seed=seed)[0]]

    assert drawn(1) == drawn(1) != drawn(2)
    assert _chosen(20, 5, "pinned").tolist() == [4, 5, 10, 13, 15], "a draw of before would choose other rows now"


def test_a_mixture_of_before_has_the_same_rows_now(root):
    rows, _ = mix([source(weight=1.5), source(limit=20, weight=0.3)], root, TAXONOMY, 0.5, clean_fraction=0.4, seed=42)
    drawn = "\n".join(row.source for row in rows)
    assert (len(rows), hashlib.sha256(drawn.encode()).hexdigest()[:16]) == (100, "ecbda717dcc1a237")


def test_parts_say_what_each_source_gave(root):
    images(root / "more/unknown", *(f"u{number}.png" for number in range(3)))
    images(root / "more/privacy", *(f"p{number}.png" for number in range(5)))
    images(root / "more/politics", *(f"q{number}.png" for number in range(2)))
    more = source(root=str(root / "more"), weight=2, limit=4, labels={"politics": None, "unknown": "fairness:1"})
    rows, (one, other) = mix([source(weight=0.5), more], root, TAXONOMY, clean_fraction=0.4, seed=3)
    assert (other.recipe, other.split, other.read, other.bad, other.left_out) == (
        "image_folder",
        "train+validation",
        4,
        0,
        2,
    )
    assert (
        one.used + other.used == len(rows)
        and sum(one.labels.values()) == one.used
        and sum(other.labels.values()) == other.used
    )
    assert total([one, other]) == {f"{name}:{level}": count for (name, level), count in sorted(rows.counts().items())}
    assert other.labels.keys() == {"fairness:1", "privacy:2"} and one.labels["clean:0"] == types(rows)["clean"]
    assert Part(**one.to_dict()) == one


def test_labels_of_the_users_and_rows_left_out_are_counted(root):
    rows, (part,) = mix([source(labels={"insults": "fairness:1", "politics": None})], root, TAXONOMY)
    assert part.labels == {"clean:0": 40, "fairness:1": 4, "privacy:2": 30} and part.left_out == 6
    with pytest.raises(DataError, match="labels: no row has the category 'insult'; did you mean 'insults'"):
        mix([source(labels={"insult": "fairness"})], root, TAXONOMY)


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
@pytest.mark.parametrize(
    "value, reason",
    [
        ("fairness:x", "must be a type, or type:level"),
        ("fairness:²", "must be a type, or type:level"),
        ("fairnes", "did you mean 'fairness'"),
        ("fairness:9", "must be a whole number from 0 to 3"),
        ("fairness:0", "set it to 1..3, or label it 'clean'"),
        ("clean:1", "'clean' goes with level 0"),
        (3, "unknown risk_type '3'"),
    ],
)
def test_a_label_that_cannot_be_is_an_error_and_no_bad_row(root, value, reason, bad_rows):
    with pytest.raises(DataError, match=f"^labels: 'insults' -> {value!r}.*{reason}"):
        mix([source(labels={"insults": value}, bad_rows=bad_rows)], root, TAXONOMY)


def test_categories_that_yaml_reads_as_numbers_and_cells_of_any_kind_have_labels():
    read = reading(labels={3: "privacy:1", "[4]": None})
    assert read.label({}, 3) == read.label({}, "3") == ("privacy", 1)
    with pytest.raises(LeftOut):
        read.label({}, [4])
    assert read.label({"Hate & Bias": ("fairness", 2)}, "hate_bias") == ("fairness", 2)
    for category in (None, ["a"], {"a": 1}, 2.5):
        with pytest.raises(DataError, match="unknown category .* or name it in `labels`"):
            read.label({"Hate": ("fairness", 2)}, category)
    read.check_labels()


def test_test_splits_are_held_out_whole_whatever_the_labels_say(tmp_path):
    for split, category in (("train", "Personal Data"), ("test", "disinformation")):
        images(tmp_path / "vlguard" / split, f"{split}.png")
        row = {"image": f"{split}.png", "safe": False, "harmful_category": "x", "harmful_subcategory": category}
        write_json(
            tmp_path / f"vlguard/{split}.json", [{**row, "instr-resp": [{"instruction": "Q", "response": "No."}]}]
        )
    vlguard = Source("vlguard", split="train+validation", labels={"personal data": "privacy:1"})
    assert vlguard.read(tmp_path, TAXONOMY, training=True)[0][0].risk_level == 1
    ((name, rows),) = vlguard.test_splits(tmp_path, TAXONOMY)
    assert name == "vlguard test" and [row.images[0].name for row in rows] == ["test.png"]
    ((_, rows),) = Source("vlguard", labels={"disinformation": None}).test_splits(tmp_path, TAXONOMY)
    assert [row.images[0].name for row in rows] == ["test.png"]


def conversation(*texts):
    return {"conversations": [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]}


@pytest.fixture
def table(tmp_path):
    """A LLaVA file with four rows, two of which break a rule."""
    write_json(
        tmp_path / "t.json", [conversation("Q", "A"), conversation("Q"), conversation("Q", "A2"), {"image": "no.png"}]
    )
    return tmp_path / "t.json"


def test_rows_of_a_large_file_are_made_when_asked_for_and_bad_ones_name_themselves_then(table):
    rows, _ = Source("llava_instruct", root=str(table)).read("", TAXONOMY, training=True)
    assert len(rows) == 4 and rows[2].answer == "A2" and rows.counts() == {("clean", 0): 4}
    with pytest.raises(DataError, match="^t.json:2: roles are"):
        rows[1]
    with pytest.raises(DataError, match="^t.json:4: image 'no.png': no such file"):
        rows[3]


def test_bad_rows_of_a_large_file_are_left_out_and_counted_at_once(table, caplog):
    rows, read = Source("llava_instruct", root=str(table), bad_rows="skip").read("", TAXONOMY, training=True)
    assert [row.source for row in rows] == ["t.json:1", "t.json:3"] and len(read.faults) == 2
    assert "2 of 4 rows are left out" in caplog.text
    write_json(table, [conversation("Q")])
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        Source("llava_instruct", root=str(table), bad_rows="skip").read("", TAXONOMY, training=True)


def test_where_answers_are_needed_a_row_without_one_is_refused(table):
    def convert(row):
        return Sample((), (Turn("user", "Q"), Turn("assistant", "")), "clean", 0, row.source)

    assert reading().lazily(JsonRows(table), convert, ("clean", 0))[0].answer == ""
    with pytest.raises(DataError, match="^t.json:1: has no answer to train a language model on"):
        reading(answers=True).lazily(JsonRows(table), convert, ("clean", 0))[0]
    with pytest.raises(DataError, match="4 of 4 rows cannot be used\nt.json:1: has no answer"):
        reading(answers=True, bad_rows="skip").lazily(JsonRows(table), convert, ("clean", 0))


def test_labels_of_the_users_match_whatever_the_capitals_and_signs(root):
    rows, _ = mix([source(labels={"In-Sults": "fairness:1"})], root, TAXONOMY)
    assert types(rows)["fairness"] == 4 and types(rows)["insults"] == 0


def test_bad_rows_stop_the_reading_or_are_left_out_and_counted(root, caplog):
    images(root / "image_folder/unknown", *(f"u{number}.png" for number in range(7)))
    with pytest.raises(DataError, match=r"7 of 87 rows cannot be used(.|\n)*u0.png: unknown category(.|\n)*and 2 more"):
        mix([source()], root, TAXONOMY)
    with caplog.at_level(logging.WARNING):
        rows, (part,) = mix([source(bad_rows="skip")], root, TAXONOMY)
    assert (part.bad, len(rows)) == (7, 80) and "7 of 87 rows are left out" in caplog.text
    images(root / "bad/image_folder/unknown", "a.png")
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        mix([source(bad_rows="skip")], root / "bad", TAXONOMY)


def test_skip_also_leaves_out_images_that_cannot_be_decoded(root):
    broken = root / "image_folder/politics/politics3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert len(mix([source()], root, TAXONOMY)[0]) == 80, "with error it is found when it is used"
    rows, (part,) = mix([source(bad_rows="skip")], root, TAXONOMY)
    assert len(rows) == 79 and part.bad == 1 and "politics3.png" not in {row.images[0].name for row in rows}
    assert "not a readable image" in part.faults[0]


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"weight": -1}, "weight -1 must be a number from 0"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": float("inf")}, "weight inf"),
        ({"weight": "2"}, "weight '2' must be a number"),
        ({"limit": 0}, "limit 0 must be at least 1"),
        ({"limit": 2.5}, "limit 2.5 must be at least 1"),
        ({"labels": ["a"]}, r"labels \['a'\] must map categories"),
    ],
)
def test_what_a_source_may_not_say(options, reason):
    with pytest.raises(DataError, match=reason):
        source(**options)


def test_bad_rows_has_two_values(root):
    with pytest.raises(DataError, match="bad_rows 'skpi'; did you mean 'skip'"):
        mix([source(bad_rows="skpi")], root, TAXONOMY)


def test_validation_is_carved_by_image_name_wherever_the_data_lies(root, tmp_path_factory):
    def names(folder, split):
        return {
            row.images[0].name for row in data_recipes.read("image_folder", folder, split, reading(), training=False)
        }

    folder = root / "image_folder"
    train, held, whole = (names(folder, split) for split in ("train", "validation", "train+validation"))
    assert not train & held and train | held == whole and 2 <= len(held) <= 20
    moved = tmp_path_factory.mktemp("other") / "place"
    folder.rename(moved)
    assert names(moved, "validation") == held
    with pytest.raises(DataError, match="recipe 'image_folder' has no split 'test'"):
        names(moved, "test")


def test_a_test_split_is_refused_for_training(tmp_path):
    with pytest.raises(DataError, match="split 'test' is for measuring and may not be trained on"):
        data_recipes.read("vlguard", tmp_path, "test", reading(), training=True)
