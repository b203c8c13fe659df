"""A study in PostgreSQL: one driver writes, and a connection that drops ends nothing. Runs on the driver; talks to Optuna.

The driver has one connection, and holds an advisory lock on it: whoever writes holds the sweep, and the server lets go of it
when the connection ends, however the driver died.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import platform
import secrets
import time
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import psycopg
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models  # no public way to tell a trial that a lost commit has made
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from tuner.errors import FolderError, StorageError

if TYPE_CHECKING:
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

PATIENCE_S = 300.0
"""How long a running sweep waits for a database that was there before."""
MOST_DROPS = 5
"""Times that a connection may drop within one call."""
_ANSWER_S = 10
_PAUSE_S = 0.5
_LET_GO_S = 0.1
_KEEPALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""Seconds, seconds, times: the server finds within a minute that a driver's node is gone."""

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Connector:
    """Opens connections to a database; with a name, each holds the sweep of that name.

    Args:
        address: `postgresql://...`, without a password: libpq takes it from PGPASSWORD or ~/.pgpass.
        name: Of the sweep, for the one that writes; None for those who read.
        patience_s: Seconds to wait for a database that has answered before.
    """

    def __init__(self, address: str, name: str | None = None, patience_s: float = PATIENCE_S) -> None:
        self.address = address
        self._name = name
        self._patience_s = patience_s
        self._has_answered = False
        self._token = f"tuner {platform.node()[:20]} {os.getpid()} {secrets.token_hex(8)}"
        """Names this driver to the server, and to people who look at its connections."""

    def connect(self) -> psycopg.Connection:
        """Open a connection.

        Raises:
            StorageError: The database does not answer, or refuses.
            FolderError: Another driver holds the sweep.
        """
        connection = self._opened()
        try:
            for key, value in _KEEPALIVE.items():
                connection.execute(f"SET {key} = {value}")
            if self._name is not None:
                self._hold(connection, self._name)
            connection.commit()
        except psycopg.Error as error:
            connection.close()
            raise StorageError(self.words(error)) from None
        except FolderError:
            connection.close()
            raise
        self._has_answered = True
        return connection

    def words(self, error: BaseException) -> str:
        """What went wrong, on one line."""
        text = " ".join(str(error).split())
        hint = "; the password is taken from PGPASSWORD or ~/.pgpass" if "password" in text else ""
        return f"{self.address}: {text}{hint}"

    def _opened(self) -> psycopg.Connection:
        """A new connection, waited for if there was one before."""
        until_s = time.monotonic() + (self._patience_s if self._has_answered else 0.0)
        for attempt in itertools.count():
            try:
                return psycopg.connect(
                    self.address, application_name=self._token, connect_timeout=_ANSWER_S, keepalives_idle=30
                )
            except psycopg.Error as error:
                if time.monotonic() >= until_s:
                    raise StorageError(self.words(error)) from None
                if attempt == 0:
                    log.warning("%s; trying again for %.0f s", self.words(error), self._patience_s)
            time.sleep(min(_PAUSE_S * 2**attempt, _ANSWER_S))
        raise AssertionError  # pragma: no cover -- the loop has no end

    def _hold(self, connection: psycopg.Connection, name: str) -> None:
        """Take the sweep's lock; a connection of this driver that the server takes for alive is ended."""
        client = ""
        for attempt in range(MOST_DROPS):
            if _is_true(connection, "SELECT pg_try_advisory_lock(%s, %s)", *_key(name)):
                return
            holder = connection.execute(_HOLDER, _key(name)).fetchone()
            if holder is None:
                continue  # let go in between
            pid, client = holder
            if client == self._token:
                connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
            time.sleep(_LET_GO_S * attempt)  # also for a driver that was killed a moment ago
        msg = f"study {name!r} in {self.address} is in use by another tuner process ({client})"
        raise FolderError(msg)


_HOLDER = """
SELECT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND classid = %s::int::oid AND objid = %s::int::oid AND objsubid = 2
AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def _key(name: str) -> tuple[int, int]:
    """The two numbers by which PostgreSQL knows a sweep's lock."""
    digest = hashlib.sha256(f"tuner {name}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1, int.from_bytes(digest[4:8]) >> 1


def _is_true(connection: psycopg.Connection, query: str, *values: int) -> bool:
    row = connection.execute(query.encode(), values).fetchone()
    return row is not None and bool(row[0])


def _insisting(
    method: Callable[Concatenate[PostgresStorage, Params], Result],
) -> Callable[Concatenate[PostgresStorage, Params], Result]:
    """Repeat a call whose connection dropped. What a call writes is the same when it is written twice."""

    @functools.wraps(method)
    def insist(storage: PostgresStorage, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        for _ in range(MOST_DROPS):
            try:
                return method(storage, *args, **kwargs)
            except StorageInternalError as error:
                cause = error.__cause__
                if not isinstance(cause, DBAPIError) or not cause.connection_invalidated:
                    raise StorageError(storage.connector.words(_origin(cause or error))) from None
        msg = f"{storage.connector.address}: the connection dropped {MOST_DROPS} times in a row"
        raise StorageError(msg)

    return insist


def _origin(error: BaseException) -> BaseException:
    """The driver library's error, without the statement that SQLAlchemy adds."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


class PostgresStorage(RDBStorage):
    """Optuna's tables in PostgreSQL, for one writer whose connection may drop at any moment.

    Args:
        connector: Opens connections.
        is_writer: Keep one connection, and one only, for tables that are there. Readers open one for each call.
    """

    def __init__(self, connector: Connector, *, is_writer: bool) -> None:
        self.connector = connector
        self._newest: dict[int, int] = {}
        """Study -> its newest trial that is known here."""
        pool = {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": True} if is_writer else {"poolclass": NullPool}
        try:
            super().__init__(
                "postgresql+psycopg://",
                {"creator": connector.connect, **pool},
                skip_table_creation=is_writer,  # these two take a second connection
                skip_compatibility_check=is_writer,
            )
        except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:  # RuntimeError: tables of another Optuna
            raise StorageError(connector.words(_origin(error.__cause__ or error))) from None

    def close(self) -> None:
        """End the connection, and with it the hold on the sweep."""
        self.remove_session()
        self.engine.dispose()

    set_study_user_attr = _insisting(RDBStorage.set_study_user_attr)
    set_study_system_attr = _insisting(RDBStorage.set_study_system_attr)
    get_all_studies = _insisting(RDBStorage.get_all_studies)
    get_study_id_from_name = _insisting(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _insisting(RDBStorage.get_study_name_from_id)
    get_study_directions = _insisting(RDBStorage.get_study_directions)
    get_study_user_attrs = _insisting(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _insisting(RDBStorage.get_study_system_attrs)
    set_trial_user_attr = _insisting(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _insisting(RDBStorage.set_trial_system_attr)
    get_trial = _insisting(RDBStorage.get_trial)
    get_trial_id_from_study_id_trial_number = _insisting(RDBStorage.get_trial_id_from_study_id_trial_number)
    _set_trial_param = _insisting(RDBStorage._set_trial_param)

    @_insisting
    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        self._newest[study_id] = max([self._newest.get(study_id, -1), *(trial._trial_id for trial in trials)])
        return trials

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Make a study; not repeated, for who begins a sweep is told at once."""
        study_id = super().create_new_study(directions, study_name)
        self._newest[study_id] = -1
        return study_id

    @_insisting
    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        trial = super()._create_new_trial(study_id, template_trial)
        self._newest[study_id] = trial._trial_id
        return trial

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        """A new trial, or the one that an attempt before has made whose answer got lost: nobody else makes any."""
        newest = self._newest[study_id]
        made = session.query(models.TrialModel).filter_by(study_id=study_id).filter(models.TrialModel.trial_id > newest)
        return made.one_or_none() or super()._get_prepared_new_trial(study_id, template_trial, session)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End a trial, or take one out that waits; whether it was there to take."""
        attempts = itertools.count()

        @_insisting
        def write(self: PostgresStorage) -> bool:
            if next(attempts) and self.get_trial(trial_id).state is state:
                return True  # an attempt before whose answer got lost
            return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        return write(self)


def open_storage(address: str, name: str | None = None) -> PostgresStorage:
    """Optuna's tables in a database, made where they are missing.

    Args:
        address: `postgresql://...`, without a password.
        name: Of the sweep to hold, for the one that writes; None for those who read.

    Raises:
        StorageError: The database does not answer, or refuses.
        FolderError: Another driver holds the sweep.
    """
    with Connector(address).connect() as guard:  # two drivers that find no tables would both make them
        guard.execute("SELECT pg_advisory_lock(%s, %s)", _key(""))
        storage = PostgresStorage(Connector(address), is_writer=False)
    return PostgresStorage(Connector(address, name), is_writer=True) if name is not None else storage
