"""Mixtures: weights, limits, balance, fraction of clean rows, and what a source leaves out."""

import hashlib
import logging
from collections import Counter

import pytest
from helpers.dataset_files import TAXONOMY, images, reader, write_json
from hypothesis import given
from hypothesis import strategies as st

import data_recipes
from data_recipes.core.data_config import DataConfig, Source
from data_recipes.core.mixture import SourceCounts, mix, row_repeats, total_labels
from safety_modules.sample import DataError


@pytest.fixture
def root(tmp_path):
    """40 clean, 30 privacy, 6 politics and 4 insults."""
    for name, count in (("clean", 40), ("privacy", 30), ("politics", 6), ("insults", 4)):
        images(tmp_path / "image_folder" / name, *(f"{name}{number}.png" for number in range(count)))
    return tmp_path


def source(**options):
    return Source("image_folder", split="train+validation", **options)


def mixed(root, *sources, seed=0, **options):
    return mix(DataConfig(str(root), list(sources), **options), TAXONOMY, seed)


def types(rows):
    return Counter(row.risk_type for row in rows)


@pytest.mark.parametrize("weight, count", [(0.5, 40), (1, 80), (2, 160), (2.25, 180)])
def test_weights_are_exact(root, weight, count):
    rows, (part,) = mixed(root, source(weight=weight))
    assert len(rows) == part.used == count and part.read == 80
    taken = Counter(row.source for row in rows)
    assert set(taken.values()) <= {int(weight), int(weight) + 1}


def test_a_source_of_weight_0_gives_nothing_and_a_mixture_needs_a_row(root):
    rows, (one, none) = mixed(root, source(), source(weight=0))
    assert (one.used, none.read, none.used, none.labels, len(rows)) == (80, 80, 0, {}, 80)
    with pytest.raises(DataError, match="the mixture has no rows; raise a weight"):
        mixed(root, source(weight=0))


@given(count=st.integers(0, 300), weight=st.floats(0, 4), seed=st.integers(0, 5))
def test_each_row_is_taken_the_weights_floor_or_ceiling_and_the_sum_is_right(count, weight, seed):
    times = row_repeats(count, weight, f"{seed}")
    assert abs(times.sum() - count * weight) <= 0.5 + 1e-6 and set((times - int(weight)).tolist()) <= {0, 1}


def test_a_limit_comes_before_the_weight_and_is_spread_evenly(root):
    rows, (part,) = mixed(root, source(limit=8, weight=2))
    assert part.read == 8 and len(rows) == 16 and types(rows)["clean"] == 8


def test_balance_keeps_the_number_of_risky_rows_and_moves_types_to_each_other(root):
    plain = types(mixed(root, source())[0])
    half = types(mixed(root, source(), balance=0.5)[0])
    full = types(mixed(root, source(), balance=1)[0])
    assert plain == {"clean": 40, "privacy": 30, "politics": 6, "insults": 4}
    assert half["clean"] == full["clean"] == 40 and abs(sum(half.values()) - 80) <= 1
    assert {full["privacy"], full["politics"], full["insults"]} <= {13, 14}
    assert plain["politics"] < half["politics"] < full["politics"]
    capped = mixed(root, source(), balance=1, max_repeats=2)[0]
    assert types(capped)["insults"] == 8 and max(Counter(row.source for row in capped).values()) == 2


def test_balance_of_one_risky_type_or_none_changes_nothing(root):
    plain = mixed(root, source(labels={"politics": None, "insults": None}))[0]
    assert list(plain) == list(mixed(root, source(labels={"politics": None, "insults": None}), balance=1)[0])
    clean = {name: None for name in ("privacy", "politics", "insults")}
    assert types(mixed(root, source(labels=clean), balance=1)[0]) == {"clean": 40}


@pytest.mark.parametrize("fraction, clean, risky", [(0.2, 10, 40), (0.5, 40, 40), (0.8, 40, 10)])
def test_the_fraction_of_clean_rows_thins_out_one_side(root, fraction, clean, risky):
    counts = types(mixed(root, source(), clean_fraction=fraction)[0])
    assert counts["clean"] == clean and sum(counts.values()) == clean + risky


def test_a_fraction_of_clean_rows_needs_both_sides(root):
    with pytest.raises(DataError, match="clean_fraction 0.5 needs clean and risky rows, the mixture has 0 and 40"):
        mixed(root, source(labels={"clean": None}), clean_fraction=0.5)
    with pytest.raises(DataError, match="the mixture has 40 and 0"):
        mixed(root, source(labels={"privacy": None, "politics": None, "insults": None}), clean_fraction=0.5)


def test_the_same_seed_gives_the_same_rows_and_another_one_others(root):
    def drawn(seed):
        return [row.source for row in mixed(root, source(weight=0.5), seed=seed)[0]]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_mixture_has_the_same_rows_in_every_version(root):
    rows, _ = mixed(root, source(weight=1.5), source(limit=20, weight=0.3), balance=0.5, clean_fraction=0.4, seed=42)
    drawn = "\n".join(row.source for row in rows)
    assert (len(rows), hashlib.sha256(drawn.encode()).hexdigest()[:16]) == (100, "ecbda717dcc1a237")


def test_counts_of_each_source(root):
    images(root / "more/unknown", *(f"u{number}.png" for number in range(3)))
    images(root / "more/privacy", *(f"p{number}.png" for number in range(5)))
    images(root / "more/politics", *(f"q{number}.png" for number in range(2)))
    more = source(root=str(root / "more"), weight=2, limit=4, labels={"politics": None, "unknown": "fairness:1"})
    rows, (one, other) = mixed(root, source(weight=0.5), more, clean_fraction=0.4, seed=3)
    assert (other.recipe, other.split) == ("image_folder", "train+validation")
    assert (other.read, other.bad, other.left_out) == (4, 0, 2)
    assert one.used + other.used == len(rows)
    assert [sum(part.labels.values()) for part in (one, other)] == [one.used, other.used]
    labels = {f"{name}:{level}": count for (name, level), count in sorted(rows.counts().items())}
    assert total_labels([one, other]) == labels
    assert other.labels.keys() == {"fairness:1", "privacy:2"} and one.labels["clean:0"] == types(rows)["clean"]
    assert SourceCounts(**one.to_dict()) == one


def test_labels_of_the_users_and_rows_left_out_are_counted(root):
    rows, (part,) = mixed(root, source(labels={"insults": "fairness:1", "politics": None}))
    assert part.labels == {"clean:0": 40, "fairness:1": 4, "privacy:2": 30} and part.left_out == 6
    with pytest.raises(DataError, match="labels: no row has the category 'insult'; did you mean 'insults'"):
        mixed(root, source(labels={"insult": "fairness"}))


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
def test_an_invalid_label_is_an_error_and_not_a_bad_row(root, value, reason, bad_rows):
    with pytest.raises(DataError, match=f"^labels: 'insults' -> {value!r}.*{reason}"):
        mixed(root, source(labels={"insults": value}, bad_rows=bad_rows))


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


def test_labels_of_the_users_match_whatever_the_capitals_and_signs(root):
    rows, _ = mixed(root, source(labels={"In-Sults": "fairness:1"}))
    assert types(rows)["fairness"] == 4 and types(rows)["insults"] == 0


def test_bad_rows_stop_the_reading_or_are_left_out_and_counted(root, caplog):
    images(root / "image_folder/unknown", *(f"u{number}.png" for number in range(7)))
    with pytest.raises(DataError, match=r"7 of 87 rows cannot be used(.|\n)*u0.png: unknown category(.|\n)*and 2 more"):
        mixed(root, source())
    with caplog.at_level(logging.WARNING):
        rows, (part,) = mixed(root, source(bad_rows="skip"))
    assert (part.bad, len(rows)) == (7, 80) and "7 of 87 rows are left out" in caplog.text
    images(root / "bad/image_folder/unknown", "a.png")
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        mixed(root / "bad", source(bad_rows="skip"))


def test_skip_also_leaves_out_images_that_cannot_be_decoded(root):
    broken = root / "image_folder/politics/politics3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert len(mixed(root, source())[0]) == 80, "with error it is found when it is used"
    rows, (part,) = mixed(root, source(bad_rows="skip"))
    assert len(rows) == 79 and part.bad == 1 and "politics3.png" not in {row.images[0].name for row in rows}
    assert "not a readable image" in part.faults[0]


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"weight": -1}, "weight -1 must be a number from 0"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": float("inf")}, "weight inf"),
        ({"limit": 0}, "limit 0 must be at least 1"),
        ({"stream": -1}, "stream -1 must be at least 1"),
    ],
)
def test_invalid_sources(options, reason):
    with pytest.raises(DataError, match=reason):
        source(**options)


def test_bad_rows_has_two_values(root):
    with pytest.raises(DataError, match="bad_rows 'skpi'; did you mean 'skip'"):
        mixed(root, source(bad_rows="skpi"))


def test_a_test_split_is_refused_for_training(tmp_path):
    with pytest.raises(DataError, match="split 'test' is for measuring and may not be trained on"):
        data_recipes.read("vlguard", tmp_path, "test", reader(), training=True)
