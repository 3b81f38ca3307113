"""WORKSPACE.md: what it names exists. Names are looked up in the source, nothing is imported."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pit_jax"
WORKSPACE = (ROOT / "WORKSPACE.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", WORKSPACE, flags=re.MULTILINE | re.DOTALL)
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))

# `a.b`, but neither a file nor a folder of modules (`data.`).
DOTTED = [
    name
    for name in QUOTED
    if re.fullmatch(r"\w+(\.\w+)+", name)
    and not name.endswith((".json", ".jsonl", ".gin", ".py", ".txt", ".gz"))
]
# Files of a run directory and of this repository.
WRITTEN = {"config.gin", "stage.json", "metrics.jsonl", "result.json"}
PATHS = [
    name
    for name in QUOTED
    if re.fullmatch(r"[\w./]+", name)
    and ("/" in name or name.endswith((".py", ".txt")))
    and name not in WRITTEN
]

PARTS = [
    *("3.1", "3.2", "3.3", "3.4.1", "3.5", "4.3", "4.4", "4.7"),
    *(f"Eq. {number}" for number in range(1, 6)),
    *(f"Algorithm {number}" for number in (1, 2)),
    *(f"Appendix {letter}" for letter in "ACDEFGK"),
    *(f"Table {number}" for number in range(1, 5)),
    *(f"Figure {number}" for number in range(2, 6)),
    "PPO",
]


@functools.cache
def tree(module: str) -> ast.Module | None:
    """The source of `a.b` of the package, None if there is no such module."""
    path = PACKAGE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")) if path.exists() else None


def defined(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Functions, classes and assigned names of a module or class -> what is inside."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.body if isinstance(node, ast.ClassDef) else []
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: [] for target in targets if isinstance(target, ast.Name)}
    return found


def exists(name: str) -> bool:
    """Whether `module.function`, `module.Class.method` or a module of that name is there."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = tree(".".join(parts[:end]))
        if module is None:
            continue
        body = module.body
        for part in parts[end:]:
            inside = defined(body)
            if part not in inside:
                return False
            body = inside[part]
        return True
    return False


def modules() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__":
            names.append(".".join(parts))
    return names


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    section = WORKSPACE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("name", DOTTED)
def test_a_name_in_the_map_is_in_the_source(name):
    assert exists(name), f"WORKSPACE.md names {name}, which isn't in pit_jax"


@pytest.mark.parametrize("name", PATHS)
def test_a_path_in_the_map_is_in_the_repository(name):
    assert (ROOT / name).exists(), f"WORKSPACE.md names {name}, which isn't there"


def test_files_of_a_run_directory_are_written_by_the_package():
    sources = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert [name for name in WRITTEN if f'"{name}"' not in sources] == []
    assert set(QUOTED) >= WRITTEN


def test_every_part_of_the_paper_has_a_row_that_names_code():
    table = rows("The paper, part by part")
    assert {row[0] for row in table} == set(PARTS)
    for part, what, where in table:
        assert what and re.search(r"`[\w./]+`", where), part


def test_every_module_has_its_place_in_the_map():
    """Named itself, or by a function of it; those of data/ are listed in its docstring."""
    listed = (ast.get_docstring(tree("data")) or "").split()
    told = set(re.findall(r"`([^`\n]+)`", WORKSPACE.split("## Where a thing lives")[1]))
    missing = []
    for module in modules():
        in_data = module.startswith("data.") and module.removeprefix("data.") in listed
        named = any(name == module or name.startswith(f"{module}.") for name in told)
        if not (in_data or named):
            missing.append(module)
    assert not missing, f"WORKSPACE.md doesn't say what these are for: {missing}"


def test_the_layers_of_the_map_are_those_that_are_tested():
    source = ast.parse((ROOT / "tests/test_architecture.py").read_text(encoding="utf-8"))
    tested = next(
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FOLDERS"
    )
    told = [
        (folder.strip("`"), tuple(re.findall(r"`([^`]+)`", allowed)))
        for folder, allowed in rows("Layers")
    ]
    assert told == list(tested.items())


def test_a_wrong_name_is_noticed():
    for name in ("method.losses.gap_loss", "method.ppo.Moments.std", "data.synthetic.drafts"):
        assert exists(name), name
    for name in (
        "method.losses.gap_los",
        "method.ppo.Moments.mode",
        "method.ppo.gae.body",
        "datas",
    ):
        assert not exists(name), name
