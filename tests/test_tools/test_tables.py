"""tools/tables.py: pages have the numbers of results/, and no others where tables are."""

import runpy
from pathlib import Path

import pytest
import yaml

from ltm_det.measure.code import code_of, files_run, is_as_it_was, meaning
from ltm_det.studies import mobile_pages, pages, time_pages
from ltm_det.studies.page_parts import aged

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools/tables.py"), run_name="tool")


@pytest.mark.parametrize("page", TOOL["pages"](), ids=lambda page: page.stem)
def test_pages_are_what_results_say(page: Path) -> None:
    assert page.read_text() == TOOL["filled"](page.read_text()), "run `make tables`"


@pytest.mark.parametrize("name", pages.TABLES)
def test_tables_are_tables(name: str) -> None:
    lines = pages.TABLES[name]().splitlines()
    assert len(lines) > 2 and all(line[0] == line[-1] == "|" for line in lines)
    assert len({line.count("|") for line in lines}) == 1


def test_every_table_stands_somewhere() -> None:
    text = "\n".join(page.read_text() for page in TOOL["pages"]())
    for kind in ("table", "value"):
        for name in getattr(pages, f"{kind.upper()}S"):
            assert f"<!-- {kind} {name} -->" in text, name


@pytest.mark.parametrize("name", [*time_pages.DETECTORS.values(), *mobile_pages.FILES])
def test_times_of_older_code_say_so(name: str) -> None:
    """In their tables, which are what results/ and the code are: `make tables` writes it."""
    found = pages.load(f"bench/{name}.json")
    older = found["code"] != code_of(found["code"]["files"])
    assert aged(found) == (f" (`{found['commit'][:7]}`)" if older else "")
    shown = time_pages.detector_times([name]) if "detector" in name else mobile_pages.mobile_times()
    assert not older or aged(found) in shown


def test_code_that_changed_or_went_is_older() -> None:
    kept = code_of(files_run(["merging"]))
    assert is_as_it_was(kept)
    assert not is_as_it_was(dict(kept, sha256="0"))
    assert not is_as_it_was(dict(kept, files=[*kept["files"], "merging/gone.py"]))


def test_code_is_what_it_does() -> None:
    bare = meaning("def f(x):\n    return x + 1\n")
    assert bare == meaning('"""A."""\n\n\ndef f(x):  # adds\n    """Adds."""\n    return (x + 1)\n')
    assert bare != meaning("def f(x):\n    return x + 2\n")
    cpu, merging = files_run(["cpu"]), files_run(["merging"])
    assert code_of(cpu) == code_of(cpu) != code_of(merging)


def test_what_a_family_runs_is_its_own_and_what_it_imports() -> None:
    run = files_run(["backbones/vit"])
    assert {"backbones/vit/layers.py", "backbones/common/maps.py", "cpu/vit.py"} <= {*run}
    assert {"merging/ltm.py", "merging/__init__.py"} <= {*run}
    assert not [file for file in run if "/swin/" in file or "convolutional" in file]
    assert not {file.split("/")[0] for file in run} & {"measure", "compat", "basics"}


def test_an_unknown_number_is_refused() -> None:
    with pytest.raises(KeyError):
        TOOL["filled"]("<!-- value nothing -->1<!-- end -->")
    made = TOOL["filled"]("a <!-- value demo-box -->0.99<!-- end --> b")
    assert made.startswith("a <!-- value demo-box -->0.") and "0.99" not in made


def test_the_index_of_models_names_every_config() -> None:
    text = (ROOT / "configs/metafile.yml").read_text()
    assert text == TOOL["model_index"](), "run `make tables`"
    models = yaml.safe_load(text)["Models"]
    named = {ROOT / model["Config"] for model in models}
    shipped = {file for file in (ROOT / "configs").glob("*.py") if "demo" not in file.stem}
    assert named == shipped
    assert all(model["Metadata"]["GMACs"] > 0 for model in models)
