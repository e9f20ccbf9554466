import pytest
import torch
from helpers import tiny

from safety_modules import SafePipeline, Taxonomy, ask
from safety_modules.checkpoints.export import export
from safety_modules.checkpoints.extend import extend
from safety_modules.checkpoints.format import CheckpointError, read_meta
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.save import save_safety
from safety_modules.cli.main import main
from safety_modules.files import fresh_folder

EXCHANGES = [ask("what is this?", [tiny.image(1)]), ask("hello")]


@pytest.fixture
def folder(model, base, tmp_path):
    with torch.no_grad():
        model.safety.head.type_layer.weight.normal_(std=0.5)
    with fresh_folder(tmp_path / "m") as work:
        save_safety(model, work, str(base))
    return tmp_path / "m"


def wider():
    """The default taxonomy with a new category in its midst and another order of the rest."""
    data = Taxonomy.default().to_dict()
    types = data["types"]
    data["types"] = {"clean": types["clean"], "weapons": {"level": 3, "hint": "weapons"}, **types}
    return Taxonomy.from_dict(data)


def test_shared_names_keep_their_scores_and_a_new_one_is_next_to_never_predicted(folder, tmp_path):
    types, levels = extend(folder, tmp_path / "wider", wider())
    assert types.added == ("weapons",) and types.dropped == () and len(types.kept) == 7 and levels.added == ()
    before, after = (SafePipeline(load(place)).assess(EXCHANGES) for place in (folder, tmp_path / "wider"))
    for a, b in zip(before, after):
        assert b.types["weapons"] < 0.05 and list(b.types) == wider().type_names
        for name, p in a.types.items():
            assert b.types[name] == pytest.approx(p * (1 - b.types["weapons"]), abs=1e-6)
        assert b.levels == pytest.approx(a.levels, abs=1e-6)


def test_a_new_row_can_be_learned(folder, tmp_path):
    extend(folder, tmp_path / "wider", wider())
    model = load(tmp_path / "wider")
    row = model.safety.head.type_layer.weight
    assert row[1].abs().sum() == 0
    batch = model.processor.collate([model.processor.encode(EXCHANGES[1])])
    output = model(batch["head_inputs"], features=model.vision_features(None))
    torch.nn.functional.cross_entropy(output.type_logits, torch.tensor([1])).backward()
    assert row.grad[1].abs().sum() > 0


def test_a_narrower_taxonomy_and_other_levels(folder, tmp_path):
    data = Taxonomy.default().to_dict()
    del data["types"]["politics"]
    data["levels"] = [data["levels"][0], data["levels"][3], {"name": "report", "hint": "Report {hint}."}]
    for row in data["types"].values():
        row["level"] = min(row["level"], 2)
    types, levels = extend(folder, tmp_path / "other", Taxonomy.from_dict(data))
    assert types.dropped == ("politics",) and levels == type(levels)(
        ("safe", "refuse"), ("report",), ("careful", "limited")
    )
    assert str(levels) == "kept: safe, refuse; new: report; gone: careful, limited"
    assert SafePipeline(load(tmp_path / "other")).assess(EXCHANGES)


def test_an_export_is_extended_without_a_copy_of_its_base(folder, tmp_path, capsys):
    whole = export(folder, tmp_path / "export")
    (tmp_path / "t.yaml").write_text(wider().to_yaml())
    main(["extend", str(whole), str(tmp_path / "wider"), "--taxonomy", str(tmp_path / "t.yaml")])
    assert "new: weapons" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "wider").iterdir()] == ["safety"]
    assert read_meta(tmp_path / "wider").base == str(whole.resolve())
    assert SafePipeline.from_pretrained(tmp_path / "wider").assess(EXCHANGES)
    with pytest.raises(CheckpointError, match="exists already"):
        extend(whole, tmp_path / "wider", wider())
