"""Who may import whom: the layer table, the homes of heavy libraries, and the house rules that a parser can check."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

LAYERS = (
    (
        "tuner.errors",
        "tuner.forms",
        "tuner.interrupts",
        "tuner.lora",
        "tuner.optuna_quiet",
        "tuner.pareto",
        "tuner.redaction",
        "tuner.whole",
        "tuner.without_gc",
    ),
    ("tuner.gpus", "tuner.layers", "tuner.prediction", "tuner.sizes", "tuner.storage"),
    ("tuner.journal_file", "tuner.journal_queue", "tuner.placing", "tuner.trial"),
    ("tuner.dimensions", "tuner.metric_text"),
    ("tuner.addresses", "tuner.space_config"),
    ("tuner.resources_config",),
    ("tuner.config",),
    ("tuner.workload",),
    ("tuner.closed_form_moments",),
    ("tuner.closed_form",),
    ("tuner.predictor",),
    ("tuner.combinations", "tuner.front", "tuner.space"),
    ("tuner.distributions", "tuner.picking", "tuner.postgres"),
    (
        "tuner.beside",
        "tuner.ending",
        "tuner.feasibility",
        "tuner.folder",
        "tuner.journal",
        "tuner.ladder",
        "tuner.lease",
        "tuner.recommend",
        "tuner.records",
        "tuner.sweep_file",
    ),
    ("tuner.forecast", "tuner.sampler"),
    ("tuner.promotion", "tuner.pruner"),
    ("tuner.advice", "tuner.live", "tuner.scheduler"),
    ("tuner.mirror", "tuner.study"),
    ("tuner.backends", "tuner.report"),
    ("tuner.planning", "tuner.sweep"),
    ("tuner.cluster", "tuner.exporting", "tuner.watching"),
    ("tuner.cluster_cli",),
    ("tuner", "tuner.cli"),
    ("tuner.__main__",),
)
"""Bottom first. A module imports only from lower rows; a folder is one entry, whose modules import each other."""

WORKER, PREDICTOR = "tuner.worker", "tuner.vram"
WORKER_MAY_IMPORT = (
    "tuner.config",
    "tuner.dimensions",
    "tuner.errors",
    "tuner.forms",
    "tuner.gpus",
    "tuner.layers",
    "tuner.lora",
    "tuner.redaction",
    "tuner.space_config",
    "tuner.storage",
    "tuner.trial",
    "tuner.whole",
)
"""The worker's room stands beside the layers: only the predictor's imports it (backends name it by a dotted path)."""
PREDICTOR_MAY_IMPORT = (*WORKER_MAY_IMPORT, "tuner.prediction", "tuner.sizes", "tuner.workload")
"""The predictor's room is a process of its own: nothing imports it, and it may run what the worker runs."""

HOMES = {
    "accelerate": (WORKER,),
    "bitsandbytes": (WORKER, PREDICTOR),
    "datasets": (WORKER,),
    "filelock": ("tuner.folder", WORKER),
    "gguf": (WORKER,),
    "huggingface_hub": ("tuner.exporting.push", WORKER),
    "matplotlib": ("tuner.planning.picture", "tuner.report.picture"),
    "moocore": ("tuner.pareto",),
    "optuna": (
        "tuner.distributions",
        "tuner.journal",
        "tuner.journal_file",
        "tuner.journal_queue",
        "tuner.optuna_quiet",
        "tuner.postgres",
        "tuner.report.findings.importance",
        "tuner.sampler",
    ),
    "pandas": ("tuner.report.tables", WORKER),
    "peft": (WORKER, PREDICTOR),
    "plotly": ("tuner.report.page",),
    "psutil": ("tuner.backends.ray_autoscaler", WORKER),
    "psycopg": ("tuner.postgres",),
    "pyarrow": ("tuner.storage", WORKER),
    "pydantic": (
        "tuner.config",
        "tuner.dimensions",
        "tuner.exporting",
        "tuner.journal",
        "tuner.journal_file",
        "tuner.predictor",
        "tuner.report.summary",
        "tuner.resources_config",
        "tuner.space_config",
        "tuner.sweep_file",
        "tuner.vram.__main__",
        "tuner.worker.benching",
        "tuner.worker.exporting",
    ),
    "pydantic_core": ("tuner.dimensions", "tuner.sweep_file"),
    "ray": (
        "tuner.backends.ray_autoscaler",
        "tuner.backends.ray_connection",
        "tuner.backends.ray_logging",
        "tuner.backends.ray_placement",
        "tuner.backends.ray_trials",
        "tuner.backends.ray_tune",
        "tuner.cluster",
    ),
    "rich": ("tuner.live",),
    "ruamel": ("tuner.sweep_file",),
    "safetensors": (WORKER,),
    "scipy": ("tuner.report", WORKER),
    "sqlalchemy": ("tuner.postgres",),
    "torch": (WORKER, PREDICTOR),
    "transformers": (WORKER, PREDICTOR),
    "typer": ("tuner.cli", "tuner.cluster_cli"),
}
"""Library -> the only modules or folders that import it, at whatever depth."""

MOST_LINES = 400


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(file): ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "tuner").rglob("*.py")}
RANKS = {entry: rank for rank, row in enumerate(LAYERS) for entry in row}


def is_within(module: str, entry: str) -> bool:
    """Whether a module is what the entry names, or lies in the folder that it names; `tuner` names itself alone."""
    return module == entry or (entry != "tuner" and module.startswith(f"{entry}."))


def entry_of(module: str) -> str | None:
    return next((entry for entry in (*RANKS, WORKER, PREDICTOR) if is_within(module, entry)), None)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that a tree imports, at the top, in functions and for type checkers."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(home)):
                whole = (f"{home}.{alias.name}" for alias in node.names)
                yield from (name if name in TREES else home for name in whole)


IMPORTS = sorted({(module, name) for module, tree in TREES.items() for name in imports_of(tree)})
OWN_IMPORTS = [(module, name) for module, name in IMPORTS if is_within(name, "tuner") or name.startswith("tuner.")]


def may_import(module: str, name: str) -> bool:
    """The layer table's answer for two modules of the package."""
    importer, imported = entry_of(module), entry_of(name)
    if importer == imported:
        return True
    if importer == WORKER:
        return imported in WORKER_MAY_IMPORT
    if importer == PREDICTOR:
        return imported in (WORKER, *PREDICTOR_MAY_IMPORT)
    return importer in RANKS and imported in RANKS and RANKS[imported] < RANKS[importer]


def is_broad(caught: ast.expr | None) -> bool:
    match caught:
        case None | ast.Name(id="Exception" | "BaseException"):
            return True
        case ast.Tuple(elts=kinds):
            return any(is_broad(kind) for kind in kinds)
        case _:
            return False


def test_every_module_stands_in_the_layer_table() -> None:
    assert [module for module in sorted(TREES) if entry_of(module) is None] == []


def test_no_module_imports_upwards_or_sideways() -> None:
    assert [pair for pair in OWN_IMPORTS if not may_import(*pair)] == []


def test_nothing_outside_the_rooms_with_torch_imports_them() -> None:
    rooms = (WORKER, PREDICTOR)

    assert [
        (module, name)
        for module, name in OWN_IMPORTS
        if any(is_within(name, room) for room in rooms) and not any(is_within(module, room) for room in rooms)
    ] == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_is_imported_only_where_it_is_at_home(library: str) -> None:
    importers = {module for module, name in IMPORTS if name.partition(".")[0] == library}

    assert [module for module in sorted(importers) if not any(is_within(module, home) for home in HOMES[library])] == []


def test_the_only_broad_except_is_the_outermost_frame_of_a_trial() -> None:
    broad = [
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type)
    ]

    assert broad == ["tuner.worker.host"]


def test_no_module_is_too_long_to_have_one_job() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / "tuner").rglob("*.py")}

    assert [file.name for file, length in lengths.items() if length > MOST_LINES] == []


def test_every_module_says_its_job_in_its_docstring() -> None:
    assert [module for module, tree in TREES.items() if not ast.get_docstring(tree)] == []


@pytest.mark.parametrize(
    ("module", "name", "is_allowed"),
    [
        ("tuner.study", "tuner.pruner", True),
        ("tuner.study", "tuner.recommend", True),
        ("tuner.space", "tuner.recommend", False),
        ("tuner.pruner", "tuner.study", False),
        ("tuner.space", "tuner.front", False),
        ("tuner.report.page", "tuner.report.data", True),
        ("tuner.report.page", "tuner.backends", False),
        ("tuner.worker.training", "tuner.trial", True),
        ("tuner.worker.training", "tuner.layers", True),
        ("tuner.worker.training", "tuner.front", False),
        ("tuner.sweep", "tuner.worker.host", False),
        ("tuner.unheard_of", "tuner.trial", False),
    ],
)
def test_the_layer_table_tells_up_from_down(module: str, name: str, *, is_allowed: bool) -> None:
    assert may_import(module, name) is is_allowed
