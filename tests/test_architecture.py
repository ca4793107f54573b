"""Imports go downwards only: computed from the sources, imports inside functions included."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

import layerprobe

SOURCE = Path(layerprobe.__file__).parent
LIBRARIES = ("similarity", "sae", "adaptation", "activations", "internals", "sufficiency", "metalearning", "energy")
BELOW = {"errors", "files", "onsets", "progress", "stats"}
"""What every library may import."""
MODELS = BELOW | {"data", "device", "encoder", "families", "layers", "pooled"}
"""What libraries that run a model may import."""
MAY_IMPORT = {
    **dict.fromkeys(LIBRARIES, MODELS),
    **dict.fromkeys(("sufficiency", "energy"), BELOW),
    "similarity": {*BELOW, "device"},
}
ABOVE = {
    *(
        "cli",
        "context",
        "description",
        "display",
        "energy_section",
        "energy_study",
        "executors",
        "facts",
        "few_shot",
        "graph",
        "index",
        "outputs",
        "pipeline",
        "record",
        "recording",
        "report",
        "resolve",
        "runs",
        "stage",
    ),
    *("section_types", "stages", "store", "study", "sweep"),
}
SUMMARIES = {"sufficiency", "energy", "energy_section", "section_types"}
"""What the report computes with: libraries of numbers alone, and the defaults of assumptions."""
HEAVY = {"datasets", "peft", "sae_lens", "torch", "transformers"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, but for those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from at_run_time(other)
        else:
            yield child
            yield from at_run_time(child)


def imported(node: ast.AST) -> list[str]:
    """Names of the modules that a node imports; submodules where `from package import submodule` names one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"a relative import of {node.module}"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else str(node.module) for name in names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
        argument = node.args[0]
        if isinstance(argument, ast.Constant):
            return [argument.value]
        # An f-string stands for every module that it can name.
        assert isinstance(argument, ast.JoinedStr), ast.unparse(node)
        start = argument.values[0]
        assert isinstance(start, ast.Constant) and start.value.startswith("layerprobe."), ast.unparse(node)
        depth = start.value.count(".")
        return [name for name in MODULES if name.startswith(start.value) and name.count(".") == depth]
    return []


def attached(name: str) -> set[str]:
    """Modules that a package loads when one of their names is first used: those of its stub."""
    stub = MODULES[name].with_suffix(".pyi")
    if not stub.is_file():
        return set()
    nodes = [node for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    modules = [[node.module] if node.module else [alias.name for alias in node.names] for node in nodes]
    return {f"{name}.{module}" for module in chain.from_iterable(modules)}


def imports(name: str) -> set[str]:
    modules = {module for node in at_run_time(TREES[name]) for module in imported(node)}
    return (modules | attached(name)) - {name}


IMPORTS = {name: imports(name) for name in MODULES}
GRAPH = {name: {module for module in found if module in MODULES} for name, found in IMPORTS.items()}


def part(name: str) -> str:
    """The module or package directly below `layerprobe` that a module belongs to."""
    return name.split(".")[1] if "." in name else name


def reachable(start: str) -> set[str]:
    """All modules that a part of the package imports, directly or not, with its own."""
    waiting = [name for name in MODULES if part(name) == start]
    seen = set(waiting)
    while waiting:
        for name in GRAPH[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def test_the_graph_sees_imports_of_every_form():
    assert "layerprobe.stages" in GRAPH["layerprobe.graph"]  # inside a function
    assert "layerprobe.adaptation" not in GRAPH["layerprobe.context"]  # no import at all
    assert "layerprobe.context" not in GRAPH["layerprobe.stage"]  # under TYPE_CHECKING
    assert "layerprobe.adaptation" in GRAPH["layerprobe.stage"]  # under TYPE_CHECKING, and in a function
    assert "layerprobe.report.queries" in GRAPH["layerprobe.report.sections.drift.figures"]  # a submodule by `from`
    assert "layerprobe.executors.serial" in GRAPH["layerprobe.executors"]  # by its name
    assert "layerprobe.sae._census" in GRAPH["layerprobe.sae"]  # attached lazily
    assert len(MODULES) > 100


def test_there_is_no_import_cycle():
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_imports_what_is_below_it_and_no_other_library(library):
    direct = {part(module) for name in MODULES if part(name) == library for module in GRAPH[name]} - {library}
    assert direct <= MAY_IMPORT[library]
    assert {part(module) for module in reachable(library)} & ABOVE == set()


def test_private_modules_are_imported_within_their_package_only():
    for name, modules in GRAPH.items():
        for module in modules:
            package, _, last = module.rpartition(".")
            assert not last.startswith("_") or f"{name}.".startswith(f"{package}."), f"{name} imports {module}"


def test_the_report_reads_tables_and_records_alone():
    modules = reachable("report")
    assert {part(module) for module in modules} <= {"report", "record", *SUMMARIES, *BELOW}
    assert not {name for module in modules for name in IMPORTS[module] if name.split(".")[0] in HEAVY}


def test_executors_know_no_particular_stage():
    for name in MODULES:
        if part(name) in ("executors", "store", "stage"):
            assert not any(part(module) == "stages" for module in GRAPH[name]), name


def test_only_the_sae_library_imports_sae_lens():
    users = {name for name, modules in IMPORTS.items() if any(module.split(".")[0] == "sae_lens" for module in modules)}
    assert users and {part(name) for name in users} == {"sae"}


def test_nothing_asks_what_kind_of_method_it_has():
    assert [name for name, path in MODULES.items() if "method.kind" in path.read_text(encoding="utf-8")] == []


def test_imports_are_not_hidden():
    """No `__import__` or `exec`, and no import that may fail."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("__import__", "exec", "eval"), name
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                assert "ImportError" not in ast.unparse(node.type), name
                assert "ModuleNotFoundError" not in ast.unparse(node.type), name
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                assert isinstance(node.test, ast.Name), f"{name}: `if TYPE_CHECKING` with a further condition"
