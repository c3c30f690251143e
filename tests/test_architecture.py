"""The house: which room may import which, how large rooms and files may be, and what no file may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hw_profiles", "agents", "envs", "amc")

FLOORS = {
    "hw_profiles": {"hw_profiles"},
    "agents": {"agents"},
    "envs": {"envs", "hw_profiles"},
    "amc": {"amc", "envs", "agents", "hw_profiles"},
    "experiments": {"amc", "envs", "agents", "hw_profiles", "experiments"},
}
"""Package -> packages that it may import."""

ARROWS = {
    "hw_profiles.latency": set(),
    "hw_profiles.bench": {"hw_profiles.latency"},
    "envs.network": set(),
    "envs.units": {"envs.network"},
    "envs.regression": {"envs.network"},
    "envs.space": {"envs.network", "envs.regression", "envs.units"},
    "envs.importance": {"envs.network", "envs.regression", "envs.units"},
    "envs.repair": {"envs.network", "envs.regression", "envs.units"},
    "envs.compression": {
        "envs.importance",
        "envs.network",
        "envs.regression",
        "envs.repair",
        "envs.space",
        "envs.units",
    },
    "amc.config": set(),
    "amc.storage": set(),
    "amc.tasks": set(),
    "amc.export": {"amc.storage", "amc.tasks"},
    "amc.pool": {"amc.config"},
    "amc.profiling": {"amc.export", "amc.storage"},
    "amc.scoring": {"amc.config", "amc.tasks"},
    "amc.problem": {"amc.config", "amc.profiling", "amc.scoring", "amc.storage", "amc.tasks"},
    "amc.search": {
        "amc.config",
        "amc.pool",
        "amc.problem",
        "amc.profiling",
        "amc.scoring",
        "amc.storage",
        "amc.tasks",
    },
    "amc.reporting": {"amc.problem", "amc.profiling", "amc.search", "amc.storage"},
    "amc.runs": {
        "amc.config",
        "amc.export",
        "amc.pool",
        "amc.problem",
        "amc.profiling",
        "amc.reporting",
        "amc.scoring",
        "amc.search",
        "amc.storage",
        "amc.tasks",
    },
    "amc.testing": {"amc.pool", "amc.problem", "amc.search", "amc.tasks"},
    "amc.cli": {
        "amc.config",
        "amc.export",
        "amc.problem",
        "amc.profiling",
        "amc.reporting",
        "amc.runs",
        "amc.storage",
        "amc.tasks",
    },
}
"""Room -> rooms of the same package that it imports. Modules that lie beside the rooms are not listed."""

MAX_ENTRIES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 14, 400, 100


def test_imports_follow_the_arrows() -> None:
    found: dict[str, set[str]] = {room: set() for room in ARROWS}
    offenders = []
    for path in sources(*FLOORS):
        package, room = path.relative_to(ROOT).parts[0], room_of(module_of(path))
        for target in imports(path):
            if target.partition(".")[0] not in FLOORS[package]:
                offenders.append(f"{path.relative_to(ROOT)}: {target} is on a higher floor")
            inside = target.startswith(f"{package}.") and room_of(target) in ARROWS
            if room in found and inside and room_of(target) != room:
                found[room].add(room_of(target))
    offenders += [f"{room} -> {other} is no arrow" for room in ARROWS for other in sorted(found[room] - ARROWS[room])]
    offenders += [f"{room} -> {other} is unused" for room in ARROWS for other in sorted(ARROWS[room] - found[room])]
    offenders += [f"{circle} import each other" for circle in circles()]
    assert not offenders, "\n".join(offenders)


def test_rooms_say_what_they_hold_and_stay_small() -> None:
    offenders = []
    for folder in {path.parent for path in sources(*PACKAGES)} | folders("tests", "experiments", "docs"):
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(("__pycache__", ".", "py.typed"))]
        if len(entries) > MAX_ENTRIES:
            offenders.append(f"{folder.relative_to(ROOT)} has {len(entries)} entries")
        if folder.relative_to(ROOT).parts[0] in PACKAGES and not (folder / "__init__.py").exists():
            offenders.append(f"{folder.relative_to(ROOT)} has no docstring")
    for path in sources(*FLOORS):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            offenders.append(f"{path.relative_to(ROOT)} has no docstring")
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES:
            offenders.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES:
                offenders.append(f"{path.relative_to(ROOT)}: {node.name} is longer than a page")
    assert not offenders, "\n".join(offenders)


def test_nothing_loads_a_pickle_or_switches_the_formatter_off() -> None:
    offenders = []
    for path in sources(*FLOORS):
        text = path.read_text()
        for forbidden in ("weights_only=False", "allow_pickle=True"):
            if forbidden in text:
                offenders.append(f"{path.relative_to(ROOT)} says {forbidden}")
    marks = [str(path.relative_to(ROOT)) for path in sources(*FLOORS) if "# fmt: " in path.read_text()]
    offenders += [f"{path} switches the formatter off" for path in marks[10:]]
    offenders += [f"{path} makes tests a package" for path in (ROOT / "tests").rglob("__init__.py")]
    assert not offenders, "\n".join(offenders)


def test_nothing_depends_on_assertions() -> None:
    """`python -O` drops them: they may narrow a type for the checker, and nothing else."""
    offenders = []
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert) and not narrows(node.test):
                offenders.append(f"{path.relative_to(ROOT)}:{node.lineno} asserts {ast.unparse(node.test)}: raise")
    assert not offenders, "\n".join(offenders)


def narrows(test: ast.expr) -> bool:
    """Whether a condition is `x is not None`, `isinstance(x, T)`, or several of them."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return all(map(narrows, test.values))
    if isinstance(test, ast.Call):
        return isinstance(test.func, ast.Name) and test.func.id == "isinstance"
    return isinstance(test, ast.Compare) and ast.unparse(test).endswith(" is not None")


def sources(*packages: str) -> list[Path]:
    """All Python files of some packages."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def folders(*roots: str) -> set[Path]:
    """Folders with files in them, results and caches apart."""
    found = {path.parent for root in roots for path in (ROOT / root).rglob("*.*") if "__pycache__" not in path.parts}
    return {folder for folder in found if folder.name != "results"}


def module_of(path: Path) -> str:
    """Dotted name of a file; a package is named by its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The first two parts of a dotted name."""
    return ".".join(module.split(".")[:2])


def imports(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in FLOORS)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in FLOORS:
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), f"{alias.name}.py")
                yield f"{node.module}.{alias.name}" if inner.exists() else node.module


def circles() -> list[str]:
    """Modules that import each other, directly or through others."""
    graph = {module_of(path): set(imports(path)) for path in sources(*PACKAGES)}
    done: set[str] = set()
    found: list[str] = []

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            found.append(" -> ".join((*trail[trail.index(module) :], module)))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return found
