"""The house stands as drawn: imports point down, no cycles, a newcomer's path stays short, no setting is dead."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "dinoforge"
FLOORS = {
    "base": 0,
    "model": 1, "loss": 1, "data": 1,
    "features": 2,
    "train": 3, "curate": 3, "evaluate": 3, "export": 3, "explore": 3, "report": 3,
    "recipes": 4, "runs": 4, "verbs": 4, "cli": 4, "start": 4, "__init__": 4, "__main__": 4,
}  # fmt: skip
REACH = 8_800


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def room(name: str) -> str:
    """``dinoforge.train.step`` -> ``train``; the package itself is ``__init__``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def resolve(name: str) -> str | None:
    """The longest prefix of a dotted name that is a module of ours."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name if name.startswith("dinoforge") else None


def imports(path: Path, *, top_level: bool = False) -> list[tuple[str, int]]:
    """(module of ours, line) of every import in a file, wherever it stands, or at the top level alone."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(target, node.lineno) for name in names if (target := resolve(name))]
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    here = room(name)
    assert here in FLOORS, f"{name}: no floor is drawn for {here}"
    for target, line in imports(MODULES[name]):
        there = room(target)
        allowed = here == there or FLOORS[there] < FLOORS[here] or FLOORS[here] == FLOORS[there] == 4
        assert allowed, f"{MODULES[name]}:{line}: {here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"


def test_no_import_cycle():
    edges = {name: {target for target, _ in imports(path, top_level=True)} - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_what_pretrain_reaches_stays_small():
    """Lines in every module that training imports, from the loop down."""
    seen: set[str] = set()
    waiting = ["dinoforge.train.loop", "dinoforge.train.observe", "dinoforge.recipes.recipe", "dinoforge.data.loader"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [target for target, _ in imports(MODULES[name])]
    lines = sum(len(MODULES[name].read_text().splitlines()) for name in seen)
    assert lines <= REACH, f"{lines} lines in {len(seen)} modules"


def test_files_and_functions_stay_short():
    for path in MODULES.values():
        text = path.read_text()
        assert len(text.splitlines()) <= 500, f"{path} is {len(text.splitlines())} lines long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 90, f"{path}:{node.lineno}: {node.name} is {length} lines long, its docstring included"


def fields_of_configs() -> list[tuple[str, str, Path]]:
    found = []
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            bases = (
                [base.id for base in node.bases if isinstance(base, ast.Name)] if isinstance(node, ast.ClassDef) else []
            )
            if isinstance(node, ast.ClassDef) and any(base == "Config" or base.endswith("Config") for base in bases):
                found += [
                    (node.name, item.target.id, path)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign)
                    and isinstance(item.target, ast.Name)
                    and "ClassVar" not in ast.unparse(item.annotation)
                ]
    return found


READ = {
    node.attr
    for path in MODULES.values()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
}


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, name, _ in fields_of_configs()])
def test_no_dead_setting(owner, name):
    """A setting that nobody reads would be ignored in silence. ``kind`` chooses the class itself."""
    assert name in READ or name == "kind", f"{owner}.{name} is read nowhere"


def test_every_setting_is_explained():
    for owner, name, path in fields_of_configs():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name == owner:
                places = [
                    i
                    for i, item in enumerate(node.body)
                    if isinstance(item, ast.AnnAssign) and getattr(item.target, "id", "") == name
                ]
                after = node.body[places[0] + 1] if places and places[0] + 1 < len(node.body) else None
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert explained, f"{path}: {owner}.{name} has no docstring"
