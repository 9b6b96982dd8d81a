"""The rooms of the package: what each may import, no circles, and files of one idea."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ltm_det"
# A room imports from those above it alone.
LAYERS = (
    ("basics",),
    ("compat", "ib"),
    ("merging",),
    ("cpu",),
    ("backbones", "necks"),
    ("detectors",),
    ("engine", "datasets", "deploy"),
    ("measure", "prediction", "classifiers"),
    ("conversion",),
    ("studies", "pictures"),
    ("compression",),
    ("cli",),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
# What rooms of maths do not know: the host, and what comes with it.
MATHS, HOST = ("merging", "ib", "cpu"), ("mmdet", "mmengine", "mmcv", "timm")
FAMILIES = sorted(
    folder.name for folder in (PACKAGE / "backbones").iterdir() if (folder / "backbone.py").exists()
)
LINES = 300


def name_of(file: Path) -> str:
    """A file's name as a module, a package's being that of its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def statements(node: ast.AST, inside: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, but those for types alone.

    Args:
        node: Whose.
        inside: Those in functions too.
    """
    within = list(ast.iter_child_nodes(node))
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        within = list(node.orelse)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside:
        within = []
    for child in within:
        yield from statements(child, inside)


@cache
def imported(name: str, inside: bool = True) -> frozenset[str]:
    """Modules that one of ours imports; ours by their own names, not those of what is in them."""
    found = set()
    for node in statements(ast.parse(MODULES[name].read_text()), inside):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0 and node.module, f"{name} has a relative import"
            for alias in node.names:
                own = f"{node.module}.{alias.name}"
                found.add(own if own in MODULES else node.module)
    return frozenset(found)


def room_of(name: str) -> str | None:
    """The room of one of our modules, None for the package itself and for others' modules."""
    package, _, rest = name.partition(".")
    return rest.partition(".")[0] or None if package == "ltm_det" else None


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of a circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_circles_are_found() -> None:
    assert circle(dict(a={"b", "c"}, b={"c"}, c=set())) == []
    assert set(circle(dict(a={"b"}, b={"c"}, c={"b"}))) == {"b", "c"}


def test_what_counts_as_an_import() -> None:
    code = """
if TYPE_CHECKING:
    import a
else:
    import b
try:
    import c
except ImportError:
    from d import e
class K:
    import f
    def g():
        import h
"""
    found = {
        inside: [ast.unparse(node).split()[1] for node in statements(ast.parse(code), inside)]
        for inside in (False, True)
    }
    assert found == {False: list("bcdf"), True: list("bcdfh")}


def test_every_room_has_its_layer() -> None:
    rooms = {folder.name for folder in PACKAGE.iterdir() if any(folder.glob("*.py"))}
    assert rooms == set(HEIGHT), "put a new room into LAYERS, and into CONTRIBUTING.md"


@pytest.mark.parametrize("room", HEIGHT)
def test_arrows_go_one_way(room: str) -> None:
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        if room_of(name) == room
        for other in imported(name)
        if (target := room_of(other)) not in (None, room) and HEIGHT[target] >= HEIGHT[room]
    ]
    assert wrong == []


def test_the_package_imports_neither_itself_nor_what_uses_it() -> None:
    for name in MODULES:
        roots = {other.partition(".")[0] for other in imported(name)}
        assert "ltm_det" not in imported(name) or name == "ltm_det", name
        assert not roots & {"tools", "tests", "configs"}, name


def test_no_circle_of_modules() -> None:
    graph = {name: set(imported(name, inside=False) & MODULES.keys()) for name in MODULES}
    assert circle(graph) == []


@pytest.mark.parametrize("room", MATHS)
def test_rooms_of_maths_do_not_know_the_host(room: str) -> None:
    for name in MODULES:
        if room_of(name) == room:
            assert not {other.partition(".")[0] for other in imported(name)} & {*HOST}, name


def test_families_do_not_know_each_other() -> None:
    """Nor does what they share know them."""
    assert {"swin", "vit"} <= {*FAMILIES}
    for name in MODULES:
        own = name.removeprefix("ltm_det.backbones.").partition(".")[0]
        if own in (*FAMILIES, "common"):
            for family in {*FAMILIES} - {own}:
                prefix = f"ltm_det.backbones.{family}"
                assert not any(f"{other}.".startswith(f"{prefix}.") for other in imported(name)), (
                    f"{name} imports the family {family}"
                )


@pytest.mark.parametrize("folder", ["ltm_det", "tools", "tests", "configs"])
def test_files_are_short_enough_for_one_idea(folder: str) -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for file in sorted((ROOT / folder).rglob("*.py"))
        if (lines := len(file.read_text().splitlines())) > LINES
    }
    assert long == {}


def test_the_map_of_rooms_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [room for room in HEIGHT if f"\n| `{room}` |" not in text] == []
    paths = set(re.findall(r"\b(?:configs|tools|ltm_det|tests|results)/[\w/.]*\w", text))
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing == {"tests/test_merging/test_"} and len(paths) > 30  # of a merger to come


def test_test_files_have_names_of_their_own() -> None:
    """pytest would collect one of two files of a name alone."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
