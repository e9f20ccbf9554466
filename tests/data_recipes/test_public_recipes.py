"""Recipes of public data sets, each on a small copy of its real layout with the traps of the real files."""

import pytest
from helpers.dataset_files import TAXONOMY, drawn, fault, images, labels, read, reader, write_json, write_parquet

import data_recipes
from safety_modules.sample import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep these data sets out of the user's own cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


def test_vlguard_a_safe_image_with_an_unsafe_instruction_is_an_unsafe_exchange(tmp_path):
    images(tmp_path / "train", "bad_ads/a.png", "b.png", "c.png")
    ad = [{"instruction": "Say it.", "response": "No."}]
    tree = [{"safe_instruction": "What?", "response": "A tree."}, {"unsafe_instruction": "Harm it.", "response": "No."}]
    who = [{"instruction": "<image>\nWho?", "response": "I cannot tell."}]
    unsafe = {"safe": False, "harmful_category": "x"}
    rows = [
        {"id": "1", "image": "bad_ads/a.png", **unsafe, "harmful_subcategory": "disinformation", "instr-resp": ad},
        {"id": "2", "image": "b.png", "safe": True, "instr-resp": tree},
        {"id": "3", "image": "c.png", **unsafe, "harmful_subcategory": "Personal Data", "instr-resp": who},
    ]
    write_json(tmp_path / "train.json", rows)
    found = read("vlguard", tmp_path, "train+validation")
    assert labels(found) == [("misleading", 2), ("clean", 0), ("illegal", 2), ("privacy", 2)]
    assert [row.source for row in found] == ["train.json:1/1", "train.json:2/1", "train.json:2/2", "train.json:3/1"]
    assert found[3].question == "Who?" and found[0].images == (tmp_path / "train/bad_ads/a.png",)
    rows[0]["harmful_subcategory"] = "disinfo"
    rows[1]["instr-resp"] = [{"instruction": "X", "response": "Y"}]
    rows[2]["instr-resp"] = ["X"]
    write_json(tmp_path / "train.json", rows)
    message = fault("vlguard", tmp_path, "train+validation")
    assert "train.json:1: unknown category 'disinfo'" in message and "did you mean 'disinformation'" in message
    assert "train.json:2: instr-resp" in message and "does not go with safe True" in message
    assert "train.json:3: safe False must be true or false, and instr-resp ['X'] a list of exchanges" in message


def test_rtvlm_reads_the_field_names_of_every_file(tmp_path):
    images(tmp_path / "images", "1.png", "2.png", "3.png", "4.png", "5.png")
    write_json(
        tmp_path / "politics.jsonl",
        [{"prompt": "Whom?", "answer": "I take no side.", "img": "images/1.png", "refused_to_answer": "Yes"}],
        True,
    )
    write_json(
        tmp_path / "captcha.jsonl",
        [{"instruction": "Read it.", "answers": ["No."], "img": "images/2.png", "Refuse to Answer": "yes"}],
        True,
    )
    write_json(
        tmp_path / "face.jsonl",
        [
            {
                "question(s)": "Poor?",
                "answer": "Hard to say.",
                "image": "images/3.png",
                "Refuse to Answer": "Proceed with Caution",
            }
        ],
        True,
    )
    write_json(
        tmp_path / "order_A.jsonl",
        [{"question": "Which?", "answer": "B", "img": ["images/4.png", "images/5.png"], "refused_to_answer": "No"}],
        True,
    )
    write_json(
        tmp_path / "visual_misleading_wrong.jsonl",
        [{"question": "?", "answer": "No.", "img": "images/4.png<split>images/5.png"}],
        True,
    )
    found = {row.source.partition(".")[0]: row for row in read("rtvlm", tmp_path, "all")}
    assert {name: (row.risk_type, row.risk_level) for name, row in found.items()} == {
        "politics": ("politics", 3),
        "captcha": ("illegal", 3),
        "face": ("fairness", 1),
        "order_A": ("misleading", 1),
        "visual_misleading_wrong": ("misleading", 2),
    }
    assert [len(row.images) for row in found.values()] == [1, 1, 2, 1, 2] and found["captcha"].answer == "No."
    write_json(tmp_path / "other.jsonl", [{"prompt": "?", "answer": "!"}], True)
    assert "other.jsonl:1: the file's name 'other.jsonl' contains no task" in fault("rtvlm", tmp_path, "all")


def test_rtvlm_is_split_by_the_published_rule_and_rows_of_one_image_stay_together(tmp_path):
    names = [f"{number}.png" for number in range(60)]
    images(tmp_path, *names)
    rows = [{"prompt": f"{turn}?", "answer": "No.", "img": name} for turn in range(2) for name in names]
    write_json(tmp_path / "celebrity.jsonl", rows, True)
    test, train = (read("rtvlm", tmp_path, split) for split in ("test", "train"))
    held = {row.images[0].name for row in test}
    assert (
        len(test) == 2 * len(held)
        and not held & {row.images[0].name for row in train}
        and len(test) + len(train) == 120
    )
    import hashlib

    rule = {
        name
        for name in names
        if int.from_bytes(hashlib.sha256(f"split {name}".encode()).digest()[:8], "big") < 0.2 * 2**64
    }
    assert held == rule and 4 <= len(rule) <= 20


@pytest.mark.parametrize(
    "placeholder", ["<image>\nWhat?", "<image>What?", "What? <image>", "<image>\n<image>\nWhat?", "What?"]
)
def test_psa_vlm_accepts_a_placeholder_anywhere_or_none(tmp_path, placeholder):
    images(tmp_path, "a.jpg")
    turns = [{"from": "USER", "value": placeholder}, {"from": "ASSISTANT", "value": "No."}]
    write_json(
        tmp_path / "train.jsonl", [{"safe_type": 4, "safe_level": 2, "image": "a.jpg", "conversations": turns}], True
    )
    (row,) = read("psa_vlm", tmp_path, "train+validation")
    assert (row.question, row.answer, row.risk_type, row.risk_level) == ("What?", "No.", "privacy", 2)


def test_psa_vlm_labels_that_contradict_each_other_are_errors(tmp_path):
    images(tmp_path, "a.jpg")
    turns = [{"from": "USER", "value": "?"}, {"from": "ASSISTANT", "value": "No."}]
    kinds = [(0, 3), (6, 0), (2, 0), (6, 2), (9, 1), (1, None)]
    rows = [{"safe_type": kind, "safe_level": level, "image": "a.jpg", "conversations": turns} for kind, level in kinds]
    write_json(tmp_path / "train.jsonl", rows, True)
    message = fault("psa_vlm", tmp_path, "train+validation")
    assert (
        "4 of 6 rows" in message
        and "train.jsonl:3: ('insults', level 0)" in message
        and "train.jsonl:4: ('clean', level 2)" in message
    )
    assert (
        "train.jsonl:5: unknown category '9'" in message
        and "train.jsonl:6: safe_level None must be a whole number" in message
    )
    made = reader(bad_rows="skip")
    assert labels(data_recipes.read("psa_vlm", tmp_path, "train+validation", made, False)) == [
        ("politics", 3),
        ("clean", 0),
    ]
    assert len(made.faults) == 4


def test_spa_vl_trains_on_the_preferred_answer(tmp_path):
    row = {
        "question": "How?",
        "image": drawn(),
        "chosen": "Better not.",
        "rejected": "So.",
        "class1": "Malicious Use",
        "class2": "",
        "class3": "",
    }
    write_parquet(tmp_path, "data/train-00000-of-00001.parquet", [row, {**row, "class1": "Socioeconomic Harms"}])
    found = read("spa_vl", tmp_path, "train")
    assert labels(found) == [("illegal", 3), ("fairness", 2)] and found[0].answer == "Better not."
    assert found[0].images[0].read_bytes()[:4] == b"\x89PNG"
    write_parquet(tmp_path, "validation/validation-00000-of-00001.parquet", [row])
    write_parquet(tmp_path, "test/help-00000-of-00001.parquet", [row])
    assert labels(read("spa_vl", tmp_path, "validation")) == [("illegal", 3)]
    (helpful,) = read("spa_vl", tmp_path, "help")
    assert (helpful.risk_type, helpful.answer) == ("clean", "")
    bare = {name: value for name, value in row.items() if not name.startswith("class")}
    write_parquet(tmp_path / "published", "data/train-00000-of-00008.parquet", [bare])
    assert labels(read("spa_vl", tmp_path / "published", "train")) == [("illegal", 2)]
    assert labels(read("spa_vl", tmp_path / "published", "train", labels={"unlabelled": "insults"})) == [("insults", 2)]


def test_beavertails_v_never_takes_an_unsafe_answer(tmp_path):
    row = {
        "question": "How?",
        "image": drawn(),
        "category": "discriminatory_depictions",
        "image_severity": 3,
        "response": "Like so.",
        "is_response_safe": "no",
    }
    write_parquet(
        tmp_path,
        "discriminatory_depictions/train-00000-of-00001.parquet",
        [row, {**row, "is_response_safe": "yes", "response": "Let us not."}],
    )
    unsafe, safe = read("beavertails_v", tmp_path, "train+validation")
    assert safe.answer == "Let us not." and unsafe.answer != "Like so." and labels([unsafe]) == [("fairness", 2)]


def test_unsafebench_a_safe_image_is_clean_whatever_its_category(tmp_path):
    rows = [
        {"image": drawn(i), "safety_label": label, "category": "Political", "source": "Lexica"}
        for i, label in enumerate(("Safe", "Unsafe"))
    ]
    write_parquet(tmp_path, "data/train-00000-of-00001.parquet", rows)
    assert labels(read("unsafebench", tmp_path, "train+validation")) == [("clean", 0), ("politics", 3)]


def test_llavaguard_by_number_of_category_and_rating_and_without_withdrawn_images(tmp_path):
    kinds = [
        ("O1: Hate, Humiliation, Harassment", "Unsafe"),
        ("NA: None applying", "Safe"),
        ("O9: Disasters or Emergencies", "Highly Unsafe"),
        ("O5: Criminal Planning", "Generally Acceptable"),
    ]
    rows = [{"image": drawn(i), "category": category, "rating": rating} for i, (category, rating) in enumerate(kinds)]
    rows.append({**rows[0], "image": None})
    write_parquet(tmp_path, "data/train-00000-of-00001.parquet", rows)
    assert "train:5: image [] holds no image" in fault("llavaguard", tmp_path, "train+validation")
    found = read("llavaguard", tmp_path, "train+validation", bad_rows="skip")
    assert labels(found) == [("fairness", 2), ("clean", 0), ("illegal", 3), ("clean", 0)]


def test_llava_instruct_mixes_images_and_text_alone_and_keeps_all_turns(tmp_path):
    images(tmp_path, "coco/train2017/1.jpg")
    human, gpt = {"from": "human", "value": "<image>\nA?"}, {"from": "gpt", "value": "B."}
    rows = [
        {
            "id": 1,
            "image": "coco/train2017/1.jpg",
            "conversations": [human, gpt, {"from": "human", "value": "C?"}, {"from": "gpt", "value": "D."}],
        },
        {"id": 2, "conversations": [{"from": "human", "value": "Hi"}, gpt]},
        {"id": 3, "conversations": [human, gpt]},
        {"id": 4, "image": "../secret.jpg", "conversations": [human, gpt]},
        {"id": 5, "image": "/etc/hostname", "conversations": [human, gpt]},
        {"id": 6, "conversations": [gpt, {"from": "human", "value": "Hi"}]},
    ]
    write_json(tmp_path / "llava_v1_5_mix665k.json", rows)
    found = read("llava_instruct", tmp_path)
    assert (
        len(found) == 6 and [turn.text for turn in found[0].turns] == ["A?", "B.", "C?", "D."] and found[1].images == ()
    )
    for place, reason in ((2, "names no image"), (3, "leaves"), (4, "absolute path"), (5, "must alternate")):
        with pytest.raises(DataError, match=rf"llava_v1_5_mix665k.json:{place + 1}: .*{reason}"):
            found[place]
    made = reader(bad_rows="skip")
    assert len(data_recipes.read("llava_instruct", tmp_path, "train", made, False)) == 2 and len(made.faults) == 4


def test_coco_captions_takes_the_first_caption_of_each_photograph(tmp_path):
    images(tmp_path / "val2017", "1.jpg", "2.jpg")
    data = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [{"image_id": 1, "caption": "A."}, {"image_id": 1, "caption": "B."}],
    }
    write_json(tmp_path / "annotations/captions_val2017.json", data)
    assert "captions_val2017.json:2.jpg: caption is empty" in fault("coco_captions", tmp_path, "val")
    assert [row.answer for row in read("coco_captions", tmp_path, "val", bad_rows="skip")] == ["A."]


def test_image_folder_takes_known_names_types_and_the_users_own_labels(tmp_path):
    images(
        tmp_path,
        "Cyberbullying/deep/1.png",
        "privacy/2.JPG",
        "neutral/3.png",
        "scrape/4.png",
        "rest/5.png",
        "rest/notes.txt.png",
    )
    assert "scrape/4.png: unknown category 'scrape'" in fault("image_folder", tmp_path, "train+validation")
    made = reader(labels={"scrape": "illegal:1", "rest": None})
    found = data_recipes.read("image_folder", tmp_path, "train+validation", made, False)
    assert (
        sorted(labels(found)) == [("clean", 0), ("illegal", 1), ("insults", 2), ("privacy", 2)] and made.left_out == 2
    )


@pytest.mark.parametrize("name", data_recipes.names())
def test_every_recipe_says_where_its_data_comes_from_and_maps_to_labels_of_the_taxonomy(name):
    about = data_recipes.about(name)
    assert about.title and about.licence
    module = data_recipes._module(name)
    assert module.__doc__ and (
        name in ("custom", "riskworld") or "Labels" in module.__doc__ or "Layout" in module.__doc__
    )
    for label in getattr(module, "LABELS", {}).values():
        TAXONOMY.check(*label)


def test_a_root_without_the_files_is_an_error_with_what_is_missing_and_what_is_there(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    for name, split in (
        ("vlguard", "train"),
        ("figstep", "all"),
        ("llava_instruct", "train"),
        ("siuo", "all"),
        ("coco_captions", "val"),
    ):
        assert "lacks" in (message := fault(name, tmp_path, split)) and "readme.txt" in message
    for name in ("spa_vl", "unsafebench", "beavertails_v", "llavaguard"):
        assert "has none of" in fault(name, tmp_path, "train")
