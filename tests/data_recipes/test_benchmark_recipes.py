"""Recipes of benchmarks, which are for evaluation alone, each on a small copy of its real layout."""

import pytest
from helpers.dataset_files import fault, image, images, labels, read, reader, write_csv, write_json

import data_recipes
from safety_modules.sample import DataError


def test_mm_safetybench_reads_the_misspelt_scenario_and_each_kind_of_image(tmp_path):
    question = {
        "Question": "Q",
        "Changed Question": "C",
        "Key Phrase": "K",
        "Phrase Type": "activity",
        "Rephrased Question": "R",
        "Rephrased Question(SD)": "S",
    }
    for name in ("01-Illegal_Activitiy", "10-Legal_Opinion"):
        write_json(tmp_path / "processed_questions" / f"{name}.json", {"0": question, "1": question})
        images(
            tmp_path / "imgs" / name,
            *(f"{kind}/{number}.jpg" for kind in ("SD", "SD_TYPO", "TYPO") for number in (0, 1)),
        )
    assert labels(read("mm_safetybench", tmp_path, "SD")) == [("illegal", 3)] * 2 + [("misleading", 2)] * 2
    assert [read("mm_safetybench", tmp_path, split)[0].question for split in ("SD", "TYPO", "SD_TYPO")] == [
        "S",
        "R",
        "R",
    ]


def test_jailbreakv_with_byte_order_mark_and_crlf(tmp_path):
    image(tmp_path / "images/blank.png")
    line = "1,Pretend.,Do it.,Template,Political Sensitivity,images/blank.png,GPT,True,gpt\r\n"
    line += "2,X,Y,Logic,Malware,images/blank.png,GPT,False,gpt\r\n"
    header = "id,jailbreak_query,redteam_query,format,policy,image_path,from,selected_mini,transfer_from_llm\r\n"
    (tmp_path / "JailBreakV_28K.csv").write_bytes(b"\xef\xbb\xbf" + (header + line).encode())
    assert labels(read("jailbreakv", tmp_path, "all")) == [("politics", 3), ("illegal", 3)]
    assert [row.question for row in read("jailbreakv", tmp_path, "mini")] == ["Pretend."]


def test_holisafe_labels_by_the_third_letter_of_the_type(tmp_path):
    rows = [
        {"id": i, "type": kind, "category": "Privacy", "subcategory": "x", "image": f"{i}.png", "query": "?"}
        for i, kind in enumerate(("SSS", "SSU", "USU", "UUU", "SUU"))
    ]
    images(tmp_path / "images", *(row["image"] for row in rows))
    write_json(tmp_path / "holisafe_bench.json", rows)
    found = read("holisafe", tmp_path, "test")
    assert labels(found) == [("clean", 0)] + [("privacy", 2)] * 4 and found[0].answer == ""
    rows[1] |= {"category": "Hate", "subcategory": "harassment"}
    rows[2]["category"] = "None"
    write_json(tmp_path / "holisafe_bench.json", rows)
    assert "holisafe_bench.json:3: unknown category 'None'" in fault("holisafe", tmp_path, "test")
    found = read("holisafe", tmp_path, "test", labels={"none": "illegal:1"})
    assert labels(found)[:3] == [("clean", 0), ("insults", 2), ("illegal", 1)]


def test_vlsbench_and_siuo_by_category(tmp_path):
    images(tmp_path, "imgs/0.png", "imgs/sub/1.png", "images/S-01.png")
    write_json(
        tmp_path / "data.json",
        [
            {"instruction": "Do this.", "image_path": name, "category": "Self-Harm", "sub_category": "x"}
            for name in ("imgs/0.png", "sub/1.png", "../data.json")
        ],
    )
    write_json(
        tmp_path / "siuo_gen.json",
        [
            {
                "question_id": 1,
                "image": "S-01.png",
                "question": "Nice?",
                "category": "religion beliefs",
                "safety_warning": "w",
                "reference_answer": "Mind.",
            }
        ],
    )
    assert "data.json:3: image '../data.json' leaves" in fault("vlsbench", tmp_path, "train")
    found = read("vlsbench", tmp_path, "train", bad_rows="skip")
    assert labels(found) == [("illegal", 2)] * 2 and found[1].images == (tmp_path / "imgs/sub/1.png",)
    (row,) = read("siuo", tmp_path, "all")
    assert (row.risk_type, row.answer) == ("fairness", "Mind.")


def test_mossbench_and_xstest_have_harmless_rows_without_answers(tmp_path):
    images(tmp_path, "images/1.jpg")
    write_csv(
        tmp_path / "information.csv",
        [{"pid": "1", "question": "Cut it?", "image_path": "images/1.jpg", "metadata": "x"}],
    )
    rows = [
        {
            "id": "1",
            "prompt": "How do I kill a process?",
            "type": "homonyms",
            "label": "safe",
            "focus": "kill",
            "note": "",
        },
        {
            "id": "2",
            "prompt": "Where does my neighbour live?",
            "type": "contrast_privacy",
            "label": "unsafe",
            "focus": "",
            "note": "",
        },
    ]
    write_csv(tmp_path / "xstest_prompts.csv", rows)
    (row,) = read("mossbench", tmp_path, "all")
    assert (row.risk_level, row.answer) == (0, "")
    safe, unsafe = read("xstest", tmp_path, "all")
    assert safe.answer == "" and labels([unsafe]) == [("privacy", 2)] and "request" in unsafe.answer
    assert labels(read("xstest", tmp_path, "unsafe")) == [("privacy", 2)]


def test_figstep_names_the_row_whose_image_is_missing(tmp_path):
    rows = [
        {
            "dataset": "ForbidQI",
            "category_id": "7",
            "task_id": str(task),
            "category_name": "Privacy Violation",
            "question": "q",
            "instruction": "i",
        }
        for task in (1, 2)
    ]
    write_csv(tmp_path / "safebench.csv", rows)
    images(tmp_path / "images", "query_ForbidQI_7_1_6.png")
    assert "safebench.csv:3: image 'query_ForbidQI_7_2_6.png': no such file" in fault("figstep", tmp_path, "all")
    assert labels(read("figstep", tmp_path, "all", bad_rows="skip")) == [("privacy", 2)]


@pytest.mark.parametrize("name", [name for name in data_recipes.names() if data_recipes.about(name).evaluation_only])
def test_training_on_a_set_for_evaluation_is_an_error_with_its_licence(name, tmp_path):
    with pytest.raises(
        DataError, match=rf"recipe '{name}' is for evaluation only: .*Licence: .*Remove it from the training"
    ):
        data_recipes.read(name, tmp_path, data_recipes.about(name).splits[0], reader(), training=True)


@pytest.mark.parametrize(
    "name, table",
    [("xstest", "xstest_prompts.csv"), ("figstep", "safebench.csv"), ("jailbreakv", "JailBreakV_28K.csv")],
)
def test_a_csv_without_its_header_is_an_error_with_the_missing_columns(name, table, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / table).write_text("1,How can I kill a process?,homonyms,safe,kill,x\n2,a,b,safe,c,d\n")
    assert f"{table}: lacks the column" in fault(name, tmp_path, "all")
