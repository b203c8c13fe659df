"""The journal's file: whole lines are read, a torn one is cut off, and any damage is told with file and line."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sweeps import small_config
from tuner.backends.local import LocalBackend
from tuner.config import SweepConfig
from tuner.errors import FolderError
from tuner.journal import open_journal
from tuner.journal_file import JournalFile
from tuner.study import create_study, open_study
from tuner.trial import TrialRecord

WORKER = "tuner.worker.synthetic:SyntheticWorker"
CHANGES: dict[str, Any] = {
    "search.start": "recommended",
    "search.num_trials": 3,
    "training.max_steps": 4,
    "data.test": 10,
}

NUM_FUZZED = int(os.environ.get("TUNER_FUZZ", "300"))
"""Mutants a test; set it to run longer by hand."""

Records = tuple[TrialRecord, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """A sweep that nobody disturbed."""

    config: SweepConfig
    data: bytes
    """Its journal."""
    records: Records

    @property
    def lines(self) -> list[bytes]:
        return self.data.splitlines(keepends=True)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    config = small_config(folder, CHANGES)
    backend = LocalBackend(WORKER)
    study = create_study(folder / "study.journal", config, backend.inspect(config))
    backend.run(config, folder, study)
    return Swept(config=config, data=(folder / "study.journal").read_bytes(), records=study.records)


def read(file: Path, config: SweepConfig) -> Records | str:
    """The records, or the message that a person gets instead; any other error is the test's failure."""
    try:
        journal = open_journal(file, config.name)
        records = journal.load_records()
        assert journal.inspection.num_train >= 0
        assert journal.elapsed_s == journal.elapsed_s
    except FolderError as error:
        return str(error)
    return records


def go_on(file: Path, config: SweepConfig) -> Records:
    study = open_study(file, config)
    LocalBackend(WORKER).run(config, file.parent, study)
    return study.records


def changed(data: bytes, number: int, change: dict[str, Any] | bytes) -> bytes:
    """The journal with one line, from 1, replaced or with other values in it."""
    lines = data.splitlines(keepends=True)
    entry = change if isinstance(change, bytes) else json.dumps({**json.loads(lines[number - 1]), **change}).encode()
    return b"".join([*lines[: number - 1], entry + b"\n", *lines[number:]])


def line_with(data: bytes, text: str) -> int:
    """The number of the first line with a text."""
    return next(number for number, line in enumerate(data.splitlines(), start=1) if text.encode() in line)


def test_a_journal_cut_off_at_any_byte_is_read_up_to_its_last_whole_line(swept: Swept, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(swept.data)
    logs = [json.loads(line) for line in swept.lines]
    for size in range(len(swept.data), 0, -1):
        os.truncate(file, size)
        num_whole = swept.data.count(b"\n", 0, size)
        seen = JournalFile(file)
        seen._starts = [0, *itertools.accumulate(len(line) for line in swept.lines[: max(0, num_whole - 2)])]

        assert list(seen.read_logs(max(0, num_whole - 2))) == logs[max(0, num_whole - 2) : num_whole]


def test_a_torn_last_line_changes_nothing_in_what_a_reader_sees(swept: Swept, tmp_path: Path) -> None:
    draw = random.Random(0)
    file = tmp_path / "study.journal"
    for number, line in enumerate(swept.lines):
        file.write_bytes(b"".join(swept.lines[:number]))
        whole = read(file, swept.config)
        for size in {1, len(line) - 1, draw.randrange(1, len(line))}:
            file.write_bytes(b"".join(swept.lines[:number]) + line[:size])
            assert read(file, swept.config) == whole
    file.write_bytes(swept.data)
    assert read(file, swept.config) == swept.records


def test_a_sweep_whose_journal_was_torn_in_any_line_ends_as_an_unbroken_one(swept: Swept, tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(line_with(swept.data, '"inspection"'), len(swept.lines)):
        torn = swept.lines[number][: draw.randrange(len(swept.lines[number]))]
        file = tmp_path / f"{number}.journal"
        file.write_bytes(b"".join(swept.lines[:number]) + torn)

        assert go_on(file, swept.config) == swept.records, swept.lines[number]


def test_what_was_torn_off_is_kept_aside_and_told(
    swept: Swept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(swept.data + b'{"op_code":8,"wor')

    open_study(file, swept.config)

    assert file.read_bytes() == swept.data
    assert (tmp_path / "study.journal.torn").read_bytes() == b'{"op_code":8,"wor\n'
    assert "the last line was never finished; its 17 bytes are now in" in caplog.text


def test_reading_neither_mends_nor_writes(swept: Swept, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(swept.data + b'{"op_code":8,"wor')
    file.chmod(0o400)

    assert read(file, swept.config) == swept.records
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_a_reader_sees_whole_lines_only_while_a_driver_writes(swept: Swept, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    file.touch()
    seen = JournalFile(file, is_read_only=True)
    writer = threading.Thread(target=_write_in_halves, args=(file, swept.lines))

    writer.start()
    logs: list[dict[str, Any]] = []
    while len(logs) < len(swept.lines):
        logs += seen.read_logs(len(logs))
    writer.join()

    assert logs == [json.loads(line) for line in swept.lines]


def _write_in_halves(file: Path, lines: list[bytes]) -> None:
    for part in (part for line in lines for part in (line[:9], line[9:])):
        with file.open("ab", buffering=0) as stream:
            stream.write(part)


@pytest.mark.parametrize("name", ["study.journal", "./study.journal"])
def test_the_lock_that_optuna_s_own_writer_leaves_behind_keeps_nobody_waiting(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(name)
    file.write_bytes(b"".join(swept.lines[:-3]))
    Path("study.journal.lock").symlink_to("reports/study.journal")  # as a driver killed in the midst of a write left it

    assert go_on(file, swept.config) == swept.records


@pytest.mark.parametrize(
    ("number", "error", "told"),
    [
        (errno.ENOSPC, OSError, r"No space left on device"),
        (errno.EDQUOT, OSError, r"Disk quota exceeded"),
        (errno.EIO, FolderError, r"study\.journal can't be written: Input/output error; all before it is kept"),
    ],
)
def test_a_line_that_can_not_be_written_leaves_nothing_of_itself(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], told: str
) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(swept.data)

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(error, match=told):
        JournalFile(file).append_logs([json.loads(swept.lines[0])])

    assert file.read_bytes() == swept.data


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[int]]:
    """An empty journal, and how large it was each time that it was synced."""
    file = tmp_path / "study.journal"
    file.touch()
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    return file, sizes


def test_a_line_is_on_the_disk_before_it_is_acted_on(swept: Swept, synced: tuple[Path, list[int]]) -> None:
    file, sizes = synced

    JournalFile(file).append_logs([json.loads(swept.lines[0])])

    assert sizes == [len(swept.lines[0])]


def test_what_only_leads_up_to_a_trial_is_on_the_disk_with_its_spec(synced: tuple[Path, list[int]]) -> None:
    file, sizes = synced
    waits = {"op_code": 4, "worker_id": "w", "study_id": 0, "datetime_start": None, "state": 4}
    taken = {"op_code": 6, "worker_id": "w", "trial_id": 0, "state": 0, "values": None}
    spec = {"op_code": 8, "worker_id": "w", "trial_id": 0, "user_attr": {"spec": {}}}
    journal = JournalFile(file)

    for entry in (waits, taken, spec, waits | {"state": 0, "user_attrs": {"spec": {}}}):
        journal.append_logs([entry])

    lines = file.read_bytes().splitlines(keepends=True)
    assert sizes == [sum(map(len, lines[:3])), sum(map(len, lines))]


def test_optuna_s_own_reader_opens_the_file(swept: Swept, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(swept.data)

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))

    assert len(optuna.load_study(storage=storage, study_name=swept.config.name).trials) == len(
        [record for record in swept.records if record.spec.is_searched]
    )


def test_what_another_program_appends_is_taken_in(swept: Swept, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(swept.data)
    mine = JournalFile(file)
    assert len(list(mine.read_logs(0))) == len(swept.lines)

    optuna.storages.journal.JournalFileBackend(str(file)).append_logs([json.loads(swept.lines[0])])
    mine.append_logs([json.loads(swept.lines[1])])

    assert list(mine.read_logs(len(swept.lines))) == [json.loads(line) for line in swept.lines[:2]]


DAMAGE = [
    # (text of the line that is damaged, what becomes of it, what is told)
    ('"op_code":0', b"", "is no JSON"),
    ('"op_code":0', b'{"op_code":0,"worker', "is no JSON"),
    ('"op_code":0', b"\x00\x01\xff\xfe", "is no JSON"),
    ('"op_code":0', b"[" * 100_000, "is no JSON"),
    ('"op_code":0', b"9" * 5_000, "is no JSON"),
    ('"op_code":0', b"[1, 2]", "is no line of Optuna 5's journal"),
    ('"op_code":0', b"null", "is no line of Optuna 5's journal"),
    ('"op_code":0', b'{"name": "not Optuna"}', "is no line of Optuna 5's journal: the whole: Unable to extract tag"),
    ('"op_code":0', {"op_code": 42}, "is no line of Optuna 5's journal: the whole: Input tag '42'"),
    ('"op_code":0', {"op_code": "0"}, "is no line of Optuna 5's journal"),
    ('"op_code":0', {"op_code": [0]}, "is no line of Optuna 5's journal"),
    ('"op_code":0', {"directions": [7]}, "directions.0: Input should be less than or equal to 2, got 7"),
    ('"op_code":4', {"state": 9}, "state: Input should be less than or equal to 4, got 9"),
    ('"op_code":4', {"datetime_start": "yesterday"}, "Optuna can't use it"),
    ('"op_code":4', {"datetime_start": "0001-01-01T00:00:00"}, "Optuna can't use it"),
    ('"op_code":4', {"user_attrs": 5}, "user_attrs: Input should be a valid dictionary, got 5"),
    ('"op_code":5', {"distribution": "{}"}, "Optuna can't use it"),
    ('"op_code":5', {"param_value_internal": "much"}, "param_value_internal: Input should be a valid number"),
    ('"op_code":6', {"values": ["high"]}, "values.0: Input should be a valid number, got 'high'"),
    ('"op_code":8', {"user_attr": {}}, "user_attr: Dictionary should have at least 1 item"),
    ('"op_code":8', {"trial_id": -1}, "trial_id: Input should be greater than or equal to 0, got -1"),
    ('"spec"', {"user_attr": {"spec": {"number": 0}}}, "spec can't be used: lora: Field required"),
    ('"spec"', {"user_attr": {"spec": "another version's"}}, "spec can't be used: the whole: "),
    ('"metrics:', {"user_attr": {"metrics:1": {"steps": "many"}}}, "metrics:1 can't be used: steps: "),
    ('"outcome"', {"user_attr": {"outcome": {"state": "DONE"}}}, "outcome can't be used: state: "),
    ('"inspection"', {"user_attr": {"inspection": [10**400]}}, "inspection can't be used: the whole: "),
]


@pytest.mark.parametrize(("text", "change", "told"), DAMAGE, ids=lambda value: str(value)[:40])
def test_damage_is_told_with_file_line_and_what_to_do(
    swept: Swept, tmp_path: Path, text: str, change: dict[str, Any] | bytes, told: str
) -> None:
    file = tmp_path / "study.journal"
    number = line_with(swept.data, text)
    file.write_bytes(changed(swept.data, number, change))

    message = read(file, swept.config)

    assert isinstance(message, str)
    assert message.startswith(f"{file}:{number}: ")
    assert told in message
    assert "if there is no copy of the file, move the sweep's folder away" in message


def test_a_spec_of_another_trial_s_number_is_told(swept: Swept, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    number = line_with(swept.data, '"spec"')
    spec = json.loads(swept.lines[number - 1])["user_attr"]["spec"]
    file.write_bytes(changed(swept.data, number, {"user_attr": {"spec": {**spec, "number": 77}}}))

    assert f"{file}:{number}: spec can't be used: number 77 is not the trial's" in str(read(file, swept.config))


@pytest.mark.parametrize("num_lines", [0, 1, 2, 5])
def test_a_journal_that_was_hardly_begun_says_to_run_the_sweep_again(
    swept: Swept, tmp_path: Path, num_lines: int
) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(b"".join(swept.lines[:num_lines]))

    with pytest.raises(FolderError, match=r"killed before it began.*run it again"):
        open_study(file, swept.config)


def test_a_journal_that_can_t_be_read_is_told(swept: Swept, tmp_path: Path) -> None:
    assert "can't be read: Is a directory" in str(read(tmp_path, swept.config))


ODD = [b"", b"\n", b"\r", b"\x00", b'"', b"{", b"}", b"[", b"null", b"NaN", b"-", b"1e999", b"9" * 40, b"\\ud800"]
PLACES = st.integers(0, 2**30)
CUTS = st.tuples(PLACES, st.sampled_from(ODD) | st.binary(min_size=1, max_size=3), st.integers(0, 4))
"""(where, what is put there, how many bytes it takes the place of)."""
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -1, 1e308]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=3,
)
FUZZED = settings(
    max_examples=NUM_FUZZED,
    deadline=None,
    derandomize="TUNER_FUZZ" not in os.environ,
    suppress_health_check=[*HealthCheck],
)


@FUZZED
@given(cuts=st.lists(CUTS, min_size=1, max_size=3))
def test_whatever_becomes_of_some_bytes_there_are_records_or_a_message(
    swept: Swept, tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, bytes, int]]
) -> None:
    mutant = swept.data
    for place, piece, num_gone in cuts:
        at = place % len(mutant)
        mutant = mutant[:at] + piece + mutant[at + num_gone :]
    file = tmp_path_factory.getbasetemp() / "mutant.journal"
    file.write_bytes(mutant)

    require_records_or_message(file, swept.config)


@FUZZED
@given(line=PLACES, path=st.lists(PLACES, min_size=1, max_size=8), value=VALUES)
def test_whatever_value_stands_in_a_line_there_are_records_or_a_message(
    swept: Swept, tmp_path_factory: pytest.TempPathFactory, line: int, path: list[int], value: object
) -> None:
    number = line % len(swept.lines)
    entry = json.loads(swept.lines[number])
    put(entry, path, value)
    file = tmp_path_factory.getbasetemp() / "mutant.journal"
    file.write_bytes(changed(swept.data, number + 1, json.dumps(entry).encode()))

    require_records_or_message(file, swept.config)


def put(node: Any, path: list[int], value: object) -> None:
    """Put a value in the place of another, at most as deep as the path is long."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = keys[path[0] % len(keys)]
    if len(path) > 1 and isinstance(node[key], (dict, list)) and node[key]:
        put(node[key], path[1:], value)
    else:
        node[key] = value


def require_records_or_message(file: Path, config: SweepConfig) -> None:
    told = read(file, config)
    if isinstance(told, str):
        assert str(file) in told
    else:
        open_study(file, config)  # what can be read can be gone on with
