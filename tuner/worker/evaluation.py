"""Loss and metrics of a model on prepared batches. Runs on the worker.

B is rows in a batch, T tokens of its longest row, C classes, V words, N tokens that are learned.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from tuner.trial import Metric
from tuner.worker.batches import Batch
from tuner.worker.beginning import cached, is_shared, rest

if TYPE_CHECKING:
    from torch import nn

    from tuner.worker.model import BaseModel

Watch = Callable[[], contextlib.AbstractContextManager[None]]
Watched = tuple[Batch, contextlib.AbstractContextManager[None]]
"""A batch, and what is put around its forward pass."""
Floats = npt.NDArray[np.float64]
Statistic = Callable[[npt.NDArray[np.int64]], float]
"""A metric over some of the examples, given by their places."""
NUM_RESAMPLES = 200
"""Bootstrap samples behind the standard error of macro F1."""
NUM_TEST_RESAMPLES = 1_000
"""Bootstrap samples of the test data, on which trials are compared pair by pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A metric's value."""

    value: float
    standard_error: float
    """In the metric's unit, from the spread over the examples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How good a model is on some examples."""

    scores: Mapping[Metric, Score]
    """Every metric that was measured."""
    loss_of: Statistic
    """Mean cross entropy in nats, of an example's class or a completion's token, as a function of the examples' rows."""
    statistics: Mapping[Metric, Statistic]
    """Each metric as a function of the examples that it is over."""
    num_examples: int
    """Examples behind it."""

    @property
    def loss(self) -> float:
        """Of all examples."""
        return self.loss_of(np.arange(self.num_examples))

    def resampled(self, metric: Metric, order: npt.NDArray[np.int64]) -> tuple[float, ...]:
        """A metric over resamples of the examples; the draws depend on their number alone, so that trials are paired.

        Args:
            metric: One that was measured.
            order: Which example of the data each row was, in the order of the batches.
        """
        from scipy import stats  # noqa: PLC0415 -- half a second, which a process that only trains need not spend

        # choices are told by the examples' own order already, for each has several rows
        rows = np.arange(len(order)) if metric is Metric.CHOICE_ACCURACY else np.argsort(order)
        statistic = self.statistics[metric]
        if len(rows) == 1:  # which scipy refuses
            return (statistic(rows),) * NUM_TEST_RESAMPLES
        found = stats.bootstrap(
            (rows,),
            lambda chosen: statistic(chosen.astype(np.int64)),
            n_resamples=NUM_TEST_RESAMPLES,
            batch=10,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        return tuple(found.bootstrap_distribution.tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What is known of each example of a causal language model."""

    nll: Floats
    """Summed cross entropy of its completion in nats: minus the log-likelihood."""
    num_tokens: Floats
    """Tokens of its completion."""
    num_right: Floats
    """Those that are the likeliest after the right ones before them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """The completions to choose from, ready to be scored."""

    batches: tuple[Batch, ...]
    order: npt.NDArray[np.int64]
    """Which alternative each row of the batches is, in their order."""
    example: npt.NDArray[np.int64]
    """Which example each alternative belongs to."""
    is_right: npt.NDArray[np.bool_]
    """Whether each alternative is the right one."""


def forward(base: BaseModel, model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits of shape (B, C), or (N, V) of what predicts the tokens that are learned, in the type that the model gives."""
    if batch.num_common and is_shared(base, model, batch):
        inputs, places_N = rest(batch)
        with base.autocast():
            cache = cached(model, batch)
            with only_places(model, places_N):
                output = model(**inputs, past_key_values=cache, use_cache=True)
    else:
        with base.autocast(), only_places(model, batch.places_N):
            output = model(**batch.inputs())
    logits: torch.Tensor = output.logits
    return logits


@contextlib.contextmanager
def only_places(model: nn.Module, places_N: torch.Tensor | None) -> Iterator[None]:
    """Inside, the output layer sees some tokens only, and `logits` has a row for each of them.

    Of a long prompt with a short answer that is little. Where words are many, logits are most of the memory, and of a small model
    a fifth of the work.

    Args:
        model: A causal language model of transformers, or PEFT's wrapper of one.
        places_N: In B x T; None for all.
    """
    if places_N is None:
        yield
        return
    output_layer: nn.Module = model.get_output_embeddings()  # type: ignore[operator]  # of transformers' models
    hook = output_layer.register_forward_pre_hook(
        lambda _, given: (given[0].flatten(0, -2).index_select(0, places_N), *given[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, summed over the classes or tokens that are learned."""
    logits = logits.float()  # the caller's are freed, if it has no name for them
    return cross_entropy(logits, labels, reduction="sum")


def num_learned(batch: Batch) -> int:
    """Classes or tokens that a batch teaches."""
    return len(batch.labels)


@torch.no_grad()
def evaluate(
    base: BaseModel,
    model: nn.Module,
    batches: Sequence[Batch],
    choices: Choices | None = None,
    watch: Watch = contextlib.nullcontext,
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate, and leave the model in training mode or not as it was.

    Args:
        base: What the model is built on.
        model: The base, or the base with an adapter.
        batches: At least one; the last is the largest.
        choices: Measure the choice accuracy too.
        watch: Put around the last batch, to measure its memory.
        beat: Called before each batch.
    """
    was_training = model.training
    model.eval()
    if batches[0].places_N is None:
        result = _classified(base, model, _each(batches, watch, beat))
    else:
        examined = _examined(base, model, _each(batches, watch, beat))
        is_chosen = None
        if choices is not None:
            asked = _examined(base, model, _each(choices.batches, contextlib.nullcontext, beat))
            is_chosen = chosen_right(asked, choices)
        result = completed(examined, is_chosen)
    model.train(was_training)
    return result


def completion_scores(examined: Examined) -> dict[Metric, Score]:
    """Exact match, token accuracy and perplexity.

    Exact match needs no generation: greedy decoding gives the right completion if and only if each of its tokens is the
    likeliest after the right ones before it. A test holds this against `generate`.
    """
    total = examined.num_tokens.sum()
    loss = float(examined.nll.sum() / total)
    loss_error = _ratio_error(examined.nll, examined.num_tokens)
    return {
        Metric.EXACT_MATCH: share(examined.num_right == examined.num_tokens),
        Metric.TOKEN_ACCURACY: Score(
            value=float(examined.num_right.sum() / total),
            standard_error=_ratio_error(examined.num_right, examined.num_tokens),
        ),
        Metric.PERPLEXITY: Score(value=_exp(loss), standard_error=_exp(loss) * loss_error),
    }


def completed(examined: Examined, is_chosen: npt.NDArray[np.bool_] | None) -> Evaluation:
    """What is known of a causal language model, from what is known of each example.

    Args:
        examined: The examples.
        is_chosen: Whether each example's right completion is the likeliest of its choices; None where that is not asked.
    """
    scores, statistics = completion_scores(examined), _completion_statistics(examined)
    if is_chosen is not None:
        scores[Metric.CHOICE_ACCURACY] = share(is_chosen)
        statistics[Metric.CHOICE_ACCURACY] = lambda chosen: float(is_chosen[chosen].mean())
    return Evaluation(
        scores=scores,
        loss_of=lambda chosen: float(examined.nll[chosen].sum() / examined.num_tokens[chosen].sum()),
        statistics=statistics,
        num_examples=len(examined.nll),
    )


def _completion_statistics(examined: Examined) -> dict[Metric, Statistic]:
    nll, num_tokens, num_right = examined.nll, examined.num_tokens, examined.num_right
    return {
        Metric.EXACT_MATCH: lambda chosen: float((num_right == num_tokens)[chosen].mean()),
        Metric.TOKEN_ACCURACY: lambda chosen: float(num_right[chosen].sum() / num_tokens[chosen].sum()),
        Metric.PERPLEXITY: lambda chosen: _exp(float(nll[chosen].sum() / num_tokens[chosen].sum())),
    }


def chosen_right(examined: Examined, choices: Choices) -> npt.NDArray[np.bool_]:
    """Whether each example's right completion has the highest log-likelihood; the first of equal ones counts."""
    nll = np.empty_like(examined.nll)
    nll[choices.order] = examined.nll
    best: dict[int, int] = {}
    for alternative, example in enumerate(choices.example):
        if example not in best or nll[alternative] < nll[best[int(example)]]:
            best[int(example)] = alternative
    return choices.is_right[list(best.values())]


def class_scores(predicted: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> dict[Metric, Score]:
    """Accuracy and macro F1.

    Args:
        predicted: Class ids.
        right: Class ids; classes that do not occur here don't count.
    """
    draw = np.random.default_rng(0)
    samples = draw.integers(len(right), size=(NUM_RESAMPLES, len(right)))
    resampled = [macro_f1(predicted[sample], right[sample]) for sample in samples]
    f1 = Score(value=macro_f1(predicted, right), standard_error=float(np.std(resampled)))
    return {Metric.ACCURACY: share(predicted == right), Metric.MACRO_F1: f1}


def macro_f1(predicted: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> float:
    """Mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    num = int(max(predicted.max(), right.max())) + 1
    hits = np.bincount(right[predicted == right], minlength=num)
    named, real = np.bincount(predicted, minlength=num), np.bincount(right, minlength=num)
    occurs = real > 0
    return float(np.mean(2 * hits[occurs] / (named[occurs] + real[occurs])))


def share(is_right: npt.NDArray[np.bool_]) -> Score:
    """The share of hits, with the error sqrt(p (1 - p) / n) of a binomial share."""
    p = float(np.mean(is_right))
    return Score(value=p, standard_error=math.sqrt(p * (1 - p) / len(is_right)))


def _ratio_error(numerators: Floats, denominators: Floats) -> float:
    """Standard error of a ratio of sums over examples, which are independent where their tokens are not (delta method)."""
    residuals = numerators - numerators.sum() / denominators.sum() * denominators
    return float(np.sqrt((residuals**2).sum()) / denominators.sum())


def _exp(loss: float) -> float:
    """Bounded, so that a number can be written down where the loss is out of all bounds."""
    return math.exp(min(loss, 700))


def _each(batches: Sequence[Batch], watch: Watch, beat: Callable[[], None]) -> Iterator[Watched]:
    for batch in batches[:-1]:
        beat()
        yield batch, contextlib.nullcontext()
    beat()
    # the largest is never computed in parts, so that scores don't hang on whether its memory is measured
    yield replace(batches[-1], num_common=0), watch()


def _classified(base: BaseModel, model: nn.Module, batches: Iterable[Watched]) -> Evaluation:
    predicted, right, losses = [], [], []
    for batch, watching in batches:
        with watching:
            logits_BC = forward(base, model, batch).float()
        predicted.append(logits_BC.argmax(-1).cpu().numpy())
        right.append(batch.labels.cpu().numpy())
        losses.append(cross_entropy(logits_BC, batch.labels, reduction="none").double().cpu().numpy())
    named, real, nll = np.concatenate(predicted), np.concatenate(right), np.concatenate(losses)
    statistics: dict[Metric, Statistic] = {
        Metric.ACCURACY: lambda chosen: float((named == real)[chosen].mean()),
        Metric.MACRO_F1: lambda chosen: macro_f1(named[chosen], real[chosen]),
    }
    scores = class_scores(named, real)
    return Evaluation(
        scores=scores, loss_of=lambda chosen: float(nll[chosen].mean()), statistics=statistics, num_examples=len(real)
    )


def _examined(base: BaseModel, model: nn.Module, batches: Iterable[Watched]) -> Examined:
    found = []
    for batch, watching in batches:
        with watching:
            found.append(row_sums(forward(base, model, batch), batch).cpu().numpy())
    columns = np.concatenate(found, axis=1)
    return Examined(nll=columns[0], num_tokens=columns[1], num_right=columns[2])


def row_sums(logits_NV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(summed cross entropy, tokens, right tokens) of each row, of shape (3, B)."""
    assert batch.places_N is not None  # noqa: S101 -- of a causal language model
    num_rows, width = batch.input_ids_BT.shape
    logits_NV = logits_NV.float()
    nll_N = cross_entropy(logits_NV, batch.labels, reduction="none").double()
    right_N = (logits_NV.argmax(-1) == batch.labels).double()
    sums = torch.zeros(3, num_rows, dtype=torch.float64, device=batch.labels.device)
    return sums.index_add_(1, batch.places_N // width, torch.stack([nll_N, torch.ones_like(nll_N), right_N]))
