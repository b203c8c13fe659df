"""A process that dies is told with what it said last."""

from __future__ import annotations

import pytest

from tuner.errors import ExportError
from tuner.exporting.asking import answer_of


def test_a_process_that_dies_is_a_message_with_its_last_words() -> None:
    with pytest.raises(ExportError, match=r"the process of tuner.no_such_module has died: .*No module named"):
        answer_of("tuner.no_such_module", "{}")
