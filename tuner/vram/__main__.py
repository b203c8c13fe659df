"""The predicting process: a question on each line of its input, an answer on each line of its output. Both are JSON."""

from __future__ import annotations

import sys

from pydantic import TypeAdapter

from tuner.vram.answering import Answerer
from tuner.workload import Answer, Question


def main() -> None:
    """Answer until the input ends."""
    questions, answers = TypeAdapter(Question), TypeAdapter(Answer)
    answerer = Answerer()
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        answer = answerer.answer(questions.validate_json(line))
        out.write(answers.dump_json(answer).decode() + "\n")
        out.flush()


if __name__ == "__main__":
    main()
