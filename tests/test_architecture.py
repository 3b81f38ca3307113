"""The shape of the package: layers, confinements, sizes, and configs without idle fields.

The rules are read from the source with `ast`, so an import inside a function counts like any other.
"""

import ast
import dataclasses
import functools
import graphlib
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pit_jax"

# The folders of the package, and the folders that each may import. Modules that stand in no folder
# are of two kinds: GROUND may be imported by all, and TOP may import all.
FOLDERS = {
    "runtime": (),
    "data": (),
    "models": ("runtime",),
    "method": ("runtime", "data", "models"),
    "run": ("runtime", "data", "models", "method"),
    "evaluation": ("runtime", "data", "models", "method", "run"),
    "report": ("data", "run", "evaluation"),
    "plan": ("runtime", "data", "models", "method", "run"),
    "adapters": ("runtime", "data", "models", "method", "run"),
}
GROUND = ("__init__", "checked", "errors", "files")
TOP = (
    *("__main__", "api", "bindings", "cli", "command_flags", "commands", "huge_pages", "people"),
    *("reach", "serving", "sweep"),
)

# Who alone may import what. A name that ends in a dot stands for a folder.
CONFINED = {
    "gin": ("bindings", "reach"),
    "__gin__": ("bindings",),
    "tensorflow": ("data.seqio_tasks.", "data.files.builders", "data.vocabularies."),
    "tensorflow_text": ("data.vocabularies.",),
    "tensorflow_datasets": ("data.files.",),
    "seqio": ("data.seqio_tasks.",),
    "sentencepiece": ("data.vocabularies.",),
    "tokenizers": ("data.vocabularies.",),
    "t5x": ("adapters.t5x.",),
    "pyarrow": ("data.files.tables",),
    "datasets": ("data.files.tables",),
    "requests": (),
    "http": ("run.client",),
    "urllib": ("run.client",),
    "safetensors": ("models.weights.hugging_face",),
    "gguf": ("models.weights.gguf_files",),
    "torch": ("evaluation.classifier",),
    "transformers": ("evaluation.classifier",),
    "random": (),  # its generators are global; randomness is an argument
}
NOT_IN_DATA = ("jax", "jaxlib", "flax", "optax", "orbax")

# The only modules that may need TensorFlow just to be imported.
NEEDS_TENSORFLOW = (
    "data.files.builders",
    "data.seqio_tasks.",
    "adapters.",
)

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80
# What reads better whole: "module" or "module:function" -> why.
LONG = {"method.ppo_step:make_collect": "episodes from prompts to rewards, on one page"}

# Frozen dataclasses that are results rather than configs: written out whole, or for the caller.
RECORDS = {
    "Accord",
    "Agreement",
    "Answer",
    "Check",
    "Collective",
    "Comparison",
    "Cost",
    "Estimate",
    "Example",
    "Improvement",
    "LengthEffect",
    "Mean",
    "Measured",
    "Merged",
    "Ratings",
    "ReferenceMeta",
    "SignTest",
    "Summary",
    "Widths",
}


@dataclasses.dataclass(frozen=True)
class Import:
    """`target` is a module of the package without `pit_jax.`, or None with `package` set."""

    target: str | None
    package: str
    line: int


def covers(place: str, module: str) -> bool:
    if place.endswith("."):
        return module.startswith(place) or module == place[:-1]
    return module == place


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Module name without `pit_jax.` -> syntax tree; a folder's __init__ has the folder's name."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        trees[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def path_of(module: str) -> pathlib.Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def folder_of(module: str) -> str:
    """The folder of the package that a module is in; '' for one that stands in none."""
    first = module.split(".")[0]
    return first if first in FOLDERS else ""


def resolve(dotted: str) -> str | None:
    """`pit_jax.a.b.name` -> the longest module of ours in it, None for another package."""
    first, *rest = dotted.split(".")
    if first != "pit_jax":
        return None
    while rest and ".".join(rest) not in sources():
        rest.pop()
    return ".".join(rest) or "__init__"


@functools.cache
def imports_of(module: str) -> tuple[Import, ...]:
    found = []
    for node in ast.walk(sources()[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found.append(Import(resolve(name), name.split(".")[0], node.lineno))
    return tuple(found)


def all_imports() -> Iterator[tuple[str, Import]]:
    for module in sources():
        for imported in imports_of(module):
            yield module, imported


def decorator_name(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def is_frozen_dataclass(node: ast.ClassDef) -> bool:
    return any(
        isinstance(decorator, ast.Call)
        and decorator_name(decorator) in ("dataclass", "dataclasses.dataclass")
        and any(
            keyword.arg == "frozen" and ast.unparse(keyword.value) == "True"
            for keyword in decorator.keywords
        )
        for decorator in node.decorator_list
    )


# --- folders -----------------------------------------------------------------------------------


def test_every_module_has_its_place():
    for module in sources():
        assert folder_of(module) or module in (*GROUND, *TOP), f"pit_jax.{module} has no place"
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(FOLDERS)


def test_a_folder_imports_only_folders_below_it():
    """Imports inside functions and for annotations count like any other."""
    below: list[str] = []
    for folder, allowed in FOLDERS.items():
        assert set(allowed) <= set(below), f"{folder} may import a folder that isn't below it"
        below.append(folder)
    wrong = []
    for module, imported in all_imports():
        place, target = folder_of(module), imported.target
        if target is None or module in TOP or target in GROUND or target == module:
            continue
        if not place or (folder_of(target) != place and folder_of(target) not in FOLDERS[place]):
            wrong.append(f"{module}:{imported.line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_every_allowed_import_is_needed():
    used = {(folder_of(m), folder_of(i.target)) for m, i in all_imports() if i.target}
    idle = [(f, g) for f, allowed in FOLDERS.items() for g in allowed if (f, g) not in used]
    assert not idle


def test_no_import_cycles():
    """Imports inside functions and for annotations count like any other."""
    graph: dict[str, set[str]] = {module: set() for module in sources()}
    for module, imported in all_imports():
        if imported.target not in (None, module):
            graph[module].add(imported.target)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


# --- confinements -----------------------------------------------------------------------------


def test_packages_stay_where_they_are_confined():
    wrong = [
        f"{module}:{imported.line} imports {imported.package}, which belongs to "
        f"{CONFINED[imported.package] or 'no module'}"
        for module, imported in all_imports()
        if imported.package in CONFINED
        and not any(covers(place, module) for place in CONFINED[imported.package])
    ]
    assert not wrong, "\n".join(wrong)


def test_data_has_no_jax():
    """Not even through a module outside of data/."""
    wrong = []
    for module, imported in all_imports():
        if covers("data.", module):
            if imported.package in NOT_IN_DATA:
                wrong.append(f"{module}:{imported.line} imports {imported.package}")
            if imported.target is not None and not covers("data.", imported.target):
                beyond = {name.package for name in imports_of(imported.target)}
                if beyond & set(NOT_IN_DATA):
                    wrong.append(f"{module}:{imported.line} imports {imported.target}")
    assert not wrong, "\n".join(wrong)


IMPORT_WITHOUT = """
import importlib, importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocked())
failures = []
for name in MODULES:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failures.append(f"{name}: {error}")
sys.exit("\\n".join(failures) or None)
"""


def import_without(blocked: list[str], modules: list[str]) -> str:
    """What goes wrong when `modules` are imported afresh without `blocked`; '' if nothing."""
    result = subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {blocked!r}\nMODULES = {modules!r}\n{IMPORT_WITHOUT}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    return result.stderr if result.returncode else ""


def test_the_rest_imports_where_tensorflow_is_absent():
    modules = [
        "pit_jax" if module == "__init__" else f"pit_jax.{module}"
        for module in sources()
        if not any(covers(place, module) for place in NEEDS_TENSORFLOW)
    ]
    blocked = ["tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "t5x"]
    failures = import_without(blocked, modules)
    assert not failures, failures


def test_the_package_itself_imports_nothing():
    """But for what `load` imports when it is called, by its name."""
    assert [found.package for found in imports_of("__init__")] == ["importlib"]


def test_no_randomness_from_a_global_seed():
    """Generators are made from keys: `np.random.default_rng(key)`, never `np.random.rand`."""
    allowed = {"default_rng", "Generator", "SeedSequence", "PCG64", "Philox", "BitGenerator"}
    wrong = []
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
                "np.random",
                "numpy.random",
            ):
                if node.attr not in allowed:
                    wrong.append(f"{module}:{node.lineno} uses {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and ast.unparse(node).endswith(".default_rng()"):
                wrong.append(f"{module}:{node.lineno} seeds a generator from the system")
    assert not wrong, "\n".join(wrong)


def test_no_shadow_of_gin_and_no_drawers():
    """A gin/__init__.py would hide the gin package; a utils module has no subject."""
    assert not list((ROOT / "gin").rglob("__init__.py"))
    for folder in (PACKAGE, ROOT / "tests"):
        for path in folder.rglob("*.py"):
            assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path


def declared_requirements() -> set[str]:
    """install_requires of setup.py, in lower case without versions."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INSTALL_REQUIRES":
            return {Requirement(text).name.lower() for text in ast.literal_eval(node.value)}
    raise AssertionError("setup.py assigns no INSTALL_REQUIRES")


def test_requirements_are_what_is_imported():
    names = {
        "gin": "gin-config",
        "orbax": "orbax-checkpoint",
        "tensorflow_datasets": "tensorflow-datasets",
    }
    optional = {"t5x", "absl", "clu", "wandb", "gguf", "pyarrow", "datasets"}
    optional |= {"torch", "transformers"}
    imported = {
        names.get(found.package, found.package).lower()
        for _, found in all_imports()
        if found.package not in sys.stdlib_module_names | {"pit_jax", "__gin__"} | optional
    }
    assert imported == declared_requirements()


# --- sizes ------------------------------------------------------------------------------------


def test_files_and_functions_are_short():
    long = {}
    for module, tree in sources().items():
        lines = len(path_of(module).read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            long[module] = lines
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{module}:{node.name}"] = lines
    unexpected = {name: lines for name, lines in long.items() if name not in LONG}
    assert not unexpected, f"longer than they should be: {unexpected}"
    assert set(LONG) <= set(long), f"not long any more: {set(LONG) - set(long)}"


# --- configs ----------------------------------------------------------------------------------


def fields_of(node: ast.ClassDef) -> list[str]:
    return [
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and not re.match(r"(typing\.)?ClassVar\b", ast.unparse(statement.annotation))
    ]


def reads_of(tree: ast.AST) -> set[str]:
    """Attribute names that `tree` reads, but for a __post_init__: checking isn't using."""
    if isinstance(tree, ast.FunctionDef) and tree.name == "__post_init__":
        return set()
    found = set()
    if isinstance(tree, ast.Attribute) and isinstance(tree.ctx, ast.Load):
        found.add(tree.attr)
    for child in ast.iter_child_nodes(tree):
        found |= reads_of(child)
    return found


def reads_of_templates() -> set[str]:
    """Attribute names that the templates read."""
    templates = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.j2"))
    return {name for text in templates for name in re.findall(r"\b[a-z]\w*\.(\w+)", text)}


def test_every_field_of_a_config_is_read():
    """Any frozen dataclass counts as a config unless it is a record."""
    read = reads_of_templates().union(*(reads_of(tree) for tree in sources().values()))
    idle = [
        f"{module}: {node.name}.{field}"
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and is_frozen_dataclass(node) and node.name not in RECORDS
        for field in fields_of(node)
        if field not in read
    ]
    assert not idle, "fields that nothing reads:\n" + "\n".join(idle)


# --- the rules themselves ---------------------------------------------------------------------


def test_blocking_a_package_is_noticed():
    assert "No module named 'numpy'" in import_without(["numpy"], ["numpy", "json"])
    assert import_without(["no_such_package"], ["json"]) == ""


@pytest.mark.parametrize(
    ("source", "idle"),
    [
        ("x.a", set()),
        ("class C:\n  def __post_init__(self):\n    self.a", {"a"}),
        ("x.a = 1", {"a"}),
        ("f(a=1)", {"a"}),
    ],
)
def test_what_counts_as_reading_a_field(source, idle):
    assert {"a"} - reads_of(ast.parse(source)) == idle
