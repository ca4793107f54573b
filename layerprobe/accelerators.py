"""What `layerprobe doctor` reports of accelerators: the one found, what stays on the CPU, and the tests that need one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from layerprobe import device as devices
from layerprobe.provenance import versions

MARKER = "accelerator"
TESTS = Path(__file__).parent.parent / "tests"


def describe(device: str, tests: Path = TESTS) -> Iterator[tuple[str, str]]:
    """Lines with a heading and a text each.

    Args:
        device: the one that `auto` stands for.
        tests: folder of the package's tests; it need not exist.
    """
    if device == "cpu":
        yield MARKER, "none that torch can use"
    else:
        free = devices.free_bytes(device)
        memory = "" if free is None else f", {decimal(free)} free"
        has = {"bf16": devices.has_bf16(device), "TF32": devices.has_tf32(device)}
        formats = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in has.items())
        yield MARKER, f"{devices.name(device)}{memory}, {formats}"
        if not devices.has_float64(device):
            yield "", "has no float64: what other devices compute in float64 is computed on the CPU"
    yield "on the CPU", "whatever the device (docs/accelerators.md lists what runs where):"
    for text, names in _on_cpu().items():
        yield "", f"{', '.join(names)}: {text}"
    if not tests.is_dir():
        version = versions()["layerprobe"]
        yield (
            "its tests",
            "are in the source distribution: "
            f"pip download --no-deps --no-binary layerprobe layerprobe=={version}, unpack it, and there run "
            f"python -m pytest -m {MARKER}",
        )
        return
    skipped = ", skipped on this machine" if device == "cpu" else ""
    yield "its tests", f"python -m pytest -m {MARKER} runs these{skipped}:"
    for name in test_names(tests):
        yield "", name


def _on_cpu() -> dict[str, list[str]]:
    """What stages compute on the CPU whatever the device, with their names."""
    from layerprobe.stages import REGISTRY

    found: dict[str, list[str]] = {}
    for stage in REGISTRY:
        if stage.on_cpu:
            found.setdefault(stage.on_cpu, []).append(stage.name)
    return found


def test_names(tests: Path) -> list[str]:
    """Names of the tests that need an accelerator, as pytest writes them, read from the sources."""
    names = []
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_pytestmark(node)]
        whole = any(map(_is_marked, assigned))
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            if whole or any(map(_is_marked, node.decorator_list)):
                names.append(f"{path.relative_to(tests.parent).as_posix()}::{node.name}")
    return names


def _is_pytestmark(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)


def _is_marked(node: ast.expr) -> bool:
    return any(ast.unparse(part) == f"pytest.mark.{MARKER}" for part in ast.walk(node) if isinstance(part, ast.expr))
