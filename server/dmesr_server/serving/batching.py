"""Micro-batching: questions that wait at the same moment are answered together.

Nothing ever waits for a batch to fill. A question that comes while nothing runs is answered at once and alone; those
that come meanwhile wait until the run has ended, and are the next batch.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dmesr_server.serving.recommender import Question, RankedList, ServedModel, answer
from dmesr_server.telemetry import metrics, traces
from dmesr_server.telemetry.traces import Span

_Waiting = list[tuple[Question, asyncio.Future[RankedList], Span]]


class MicroBatcher:
    """Answers questions of one event loop, one batch at a time.

    One run uses the whole machine by the threads of its matrix product; two at once would only be in each other's way,
    and each be half as large.
    """

    def __init__(self, *, max_questions: int):
        """Makes it; its thread starts with the first question.

        Args:
            max_questions: Of one batch.
        """
        self._max_questions = max_questions
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dmesr-recommend")
        self._waiting: dict[ServedModel, _Waiting] = {}  # models in the order in which their first question came
        self._busy = False
        self._metrics = metrics.get()

    async def ask(self, model: ServedModel, question: Question) -> RankedList:
        """The answer to a question.

        Args:
            model: The version that answers.
            question: The question.

        Raises:
            ServiceError: INVALID_ARTEFACT when the user tower fails on this history.
        """
        with traces.step("micro-batch") as span:
            future: asyncio.Future[RankedList] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(model, []).append((question, future, span))
            if not self._busy:
                self._start()
            if self._metrics is None:
                return await future
            self._metrics.waiting.inc()
            try:
                return await future
            finally:
                self._metrics.waiting.dec()

    def _start(self) -> None:
        """Sets the thread to work on the next batch, if there is one."""
        while self._waiting and not self._busy:
            model = next(iter(self._waiting))
            waiting = self._waiting.pop(model)
            batch, rest = waiting[: self._max_questions], waiting[self._max_questions :]
            if rest:
                self._waiting[model] = rest  # behind the other models: none of them waits for all of this one
            # Whoever has gone away meanwhile is not worked for.
            batch = [(question, future, span) for question, future, span in batch if not future.done()]
            if batch:
                self._busy = True
                questions = [question for question, _, _ in batch]
                spans = [span for _, _, span in batch if span.is_recorded]
                for span in spans:
                    span.event("the batch begins")  # what came before was waiting
                if self._metrics is not None:
                    self._metrics.batch.observe(len(questions))
                run = asyncio.get_running_loop().run_in_executor(self._thread, _traced, model, questions, spans)
                run.add_done_callback(functools.partial(self._end, batch))

    def _end(self, batch: _Waiting, run: asyncio.Future[Sequence[RankedList | Exception]]) -> None:
        self._busy = False
        self._start()  # first of all: the next batch is worked on while the answers of this one are sent
        if run.cancelled():
            for _, future, _ in batch:
                future.cancel()
            return
        for (_, future, _), given in zip(batch, run.result(), strict=True):
            if future.done():
                continue
            if isinstance(given, RankedList):
                future.set_result(given)
            else:
                future.set_exception(given)


def _traced(
    model: ServedModel, questions: Sequence[Question], spans: Sequence[Span]
) -> Sequence[RankedList | Exception]:
    with traces.step("top-k", told(model, len(questions)), within=spans):
        return _answers(model, questions)


def told(model: ServedModel, questions: int) -> traces.Attributes:
    """What a span tells of questions to a model."""
    return {"dmesr.model": model.ref, "dmesr.questions": questions, "dmesr.index.items": len(model.index)}


def _answers(model: ServedModel, questions: Sequence[Question]) -> Sequence[RankedList | Exception]:
    try:
        return answer(model, questions)
    # Whatever it is: it is the caller's to hear of, and must not end the batcher.
    except Exception as error:
        if len(questions) == 1:
            return [error]
    # One history that the tower cannot take must not fail the others.
    return [given for question in questions for given in _answers(model, [question])]
