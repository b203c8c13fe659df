"""What comes from outside is data: nothing in the package unpickles it, evaluates it or hands it to a shell."""

from __future__ import annotations

import ast
import json
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
TREES = {
    str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "tuner").rglob("*.py")
}

MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "jsonpickle", "xml"}
"""Not imported by anything in tuner/. Ray pickles between its own processes, see docs/security.md."""
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "tempfile.mktemp", "pd.read_pickle", "pandas.read_pickle", "torch.hub.load", "torch.jit.load", "numpy.fromfile",
}  # fmt: skip
"""Not called by anything in tuner/."""
FLAGS = {"shell", "trust_remote_code", "allow_pickle"}
"""Arguments that are never True in the code itself; a sweep file may say so for its own model."""


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def findings(tree: ast.AST) -> Iterator[str]:
    """What a tree does that it should not, in words."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"imports {name}" for name in names if name.partition(".")[0] in MODULES)
    for name, call in calls_of(tree):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in CALLS:
            yield f"calls {name}"
        for flag in FLAGS & {*given}:
            if isinstance(given[flag], ast.Constant) and given[flag].value:  # type: ignore[attr-defined]
                yield f"{name} with {flag}=True"
        if name == "torch.load" and ast.unparse(given.get("weights_only", ast.Constant(False))) != "True":
            yield "torch.load without weights_only=True"
        if name in {"YAML", "ruamel.yaml.YAML"} and ast.literal_eval(given.get("typ", ast.Constant(""))) not in {
            "rt",
            "safe",
        }:
            yield "YAML of another kind than rt or safe"


def test_nothing_unpickles_evaluates_or_starts_a_shell() -> None:
    assert [f"{file} {found}" for file, tree in TREES.items() for found in findings(tree)] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", "imports pickle"),
        ("from yaml import load", "imports yaml"),
        ("eval(text)", "calls eval"),
        ("os.system(text)", "calls os.system"),
        ("subprocess.run(text, shell=True)", "subprocess.run with shell=True"),
        ("np.load(file, allow_pickle=True)", "np.load with allow_pickle=True"),
        (
            "AutoModel.from_pretrained(x, trust_remote_code=True)",
            "AutoModel.from_pretrained with trust_remote_code=True",
        ),
        ("torch.load(file)", "torch.load without weights_only=True"),
        ("torch.load(file, weights_only=False)", "torch.load without weights_only=True"),
        ("YAML(typ='unsafe')", "YAML of another kind than rt or safe"),
        ("tempfile.mktemp()", "calls tempfile.mktemp"),
    ],
)
def test_the_search_finds_what_it_is_for(code: str, found: str) -> None:
    assert [*findings(ast.parse(code))] == [found]


def test_code_that_comes_with_a_model_and_pickled_weights_are_off_unless_the_file_says_so() -> None:
    from tuner.config import ModelConfig

    assert ModelConfig(name="org/model").trust_remote_code is False
    assert ModelConfig(name="org/model").allow_pickle is False


class Malicious:
    """Runs a command where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._marker}",)


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, kind: str) -> None:
    import torch

    from tuner.worker.checkpoint import CHECKSUMS, _digests, restore_checkpoint

    marker, rung = tmp_path / "marker", tmp_path / "step-000060"
    rung.mkdir()
    if kind == "pickle":
        (rung / "state.pt").write_bytes(pickle.dumps(Malicious(marker), protocol=2))
    else:
        torch.save({"metrics": Malicious(marker)}, rung / "state.pt")

    (rung / CHECKSUMS).write_text(json.dumps(_digests(rung)))  # whoever can write the state can write these

    class Run:
        def load_state_dict(self, state: object) -> None:
            raise AssertionError(state)

    with pytest.raises(pickle.UnpicklingError, match=r"Weights only load failed"):
        restore_checkpoint(Run(), tmp_path)  # type: ignore[arg-type]

    assert not marker.exists()


def test_token_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    import numpy as np

    from tuner.worker.token_files import Ragged

    marker = tmp_path / "marker"
    np.save(tmp_path / "train.npy", np.array([Malicious(marker)], dtype=object), allow_pickle=True)

    with pytest.raises(ValueError, match="can't be memory-mapped: Python objects"):
        Ragged.load(tmp_path, "train")

    assert not marker.exists()
