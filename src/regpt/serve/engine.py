"""One thread owns model and caches: it takes requests, computes steps, hands out tokens.

Requests come and go through `submit`, `cancel`, `replace` and `close`, from any thread; they take
effect between two steps. A request (`Job`) is told of its tokens in the engine's thread.
"""

import logging
import threading
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from regpt.serve.backend import Choice, Entry, Loaded, draw, entries, top_k_of
from regpt.serve.metrics import Metrics
from regpt.serve.scheduler import Part, Plan, Scheduler

MOST_JOBS = 128
"""Requests open at a time."""
MOST_CHOICES = 4096
"""Texts of them."""

log = logging.getLogger("regpt.serve")


class Full(Exception):
    """There is no room in the queue."""


class Closed(Exception):
    """The engine has ended."""


class Job:
    """A request: its choices, and what is to be done with their tokens.

    All but `fail` is called in the engine's thread; `flush` once after each step that concerned it.
    """

    choices: Sequence[Choice]
    fingerprint: str = ""
    """Of the model that writes it; set before its first token."""

    def __init__(self) -> None:
        self.arrived = time.monotonic()
        self.unfinished = set(self.choices)

    def read(self, choice: Choice, prompt: list[Entry]) -> None:
        """The next prompt tokens of a choice that scores them, from its second one on."""
        raise NotImplementedError

    def drew(self, choice: Choice, entry: Entry) -> bool:
        """A token was drawn; whether the choice has ended."""
        raise NotImplementedError

    def end(self, choice: Choice) -> None:
        """A choice without tokens to draw has read its prompt."""
        raise NotImplementedError

    def flush(self) -> None:
        """Hand on what came since the last time."""
        raise NotImplementedError

    def fail(self, message: str) -> None:
        """There will be no more tokens."""
        raise NotImplementedError


class Engine:
    """The thread, its queue and its rows."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.metrics = Metrics()
        self.scheduler = Scheduler(loaded.rows, granule=loaded.backend.granule)
        self._jobs: dict[Job, None] = {}
        self._owners: dict[Choice, Job] = {}
        self._last_token: dict[Choice, float] = {}
        self._new: list[Job] = []
        self._cancelled: list[Job] = []
        self._replacement: Loaded | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="regpt-engine", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a request. Raises `Full` and `Closed`."""
        with self._changed:
            if self._closed:
                raise Closed
            waiting = sum(len(one.unfinished) for one in self._jobs)
            crowded = self._jobs and waiting + len(job.choices) > MOST_CHOICES
            if len(self._jobs) >= MOST_JOBS or crowded:
                self.metrics.requests["refused"] += 1
                raise Full
            self._jobs[job] = None
            self._new.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop a request, wherever it is; one that has ended is left alone."""
        with self._changed:
            if job in self._jobs:
                self._cancelled.append(job)
                self._changed.notify()

    def replace(self, loaded: Loaded) -> None:
        """Go on with another model of the same shape, once the requests under way have ended."""
        assert loaded.config == self.loaded.config
        with self._changed:
            self._replacement = loaded
            self._changed.notify()

    def close(self, reason: str) -> None:
        """End all requests now, and the thread after its step."""
        with self._changed:
            self._closed = True
            jobs, self._jobs = list(self._jobs), {}
            self._changed.notify()
        for job in jobs:
            job.fail(reason)

    def join(self, seconds: float) -> bool:
        """Wait for the thread; whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def gauges(self) -> dict[str, int]:
        """What is under way now."""
        return {
            "rows": len(self.scheduler.rows),
            "rows_busy": self.scheduler.busy,
            "requests_open": len(self._jobs),
            "texts_waiting": len(self.scheduler.waiting),
        }

    @torch.no_grad()
    def _run(self) -> None:
        while self._take_orders():
            if self.scheduler.paused and self.scheduler.idle:
                assert self._replacement is not None
                self.loaded, self._replacement = self._replacement, None
                self.scheduler.clear()
                self.scheduler.paused = False
            plan = self.scheduler.plan()
            if not plan.parts:
                continue
            try:
                self._step(plan)
            except Exception:
                log.exception("a step failed; its requests were ended")
                self._drop_running("the server failed on this request; its log says why")

    def _take_orders(self) -> bool:
        """Wait for something to do; False if the engine is to end."""
        with self._changed:
            while not (self._closed or self._new or self._cancelled or not self.scheduler.idle):
                if self._replacement is not None:
                    break
                self._changed.wait()
            if self._closed:
                return False
            self.scheduler.paused = self._replacement is not None
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
        for job in new:
            for choice in job.choices:
                self._owners[choice] = job
                self.scheduler.add(choice)
        for job in cancelled:
            if job in self._jobs:
                self._forget(job, "cancelled")
        return True

    def _step(self, plan: Plan) -> None:
        loaded = self.loaded
        for source, target, length in plan.copies:
            loaded.backend.copy(source, target, length)
        drawing = [part for part in plan.parts if part.wanted != "none"]
        scoring = any(part.wanted == "all" for part in drawing)
        top_k = None if scoring else top_k_of([choice_of(part) for part in drawing])
        logits = loaded.backend.step(plan.parts, top_k)
        self.scheduler.done(plan)
        sizes = [len(part.tokens) if part.wanted == "all" else 1 for part in drawing]
        rows = logits.split(sizes) if sizes else ()
        touched = dict.fromkeys(self._owners[choice_of(part)] for part in drawing)
        ready = [
            (choice_of(part), row[-1])
            for part, row in zip(drawing, rows, strict=True)
            if self._read(part, row)
        ]
        self._draw([choice for choice, _ in ready], [row for _, row in ready])
        for job in touched:
            job.flush()
            if not job.unfinished:
                self._forget(job, "finished")

    def _read(self, part: Part, logits: Tensor) -> bool:
        """Score what was read of a prompt; whether a token is to be drawn now."""
        choice, stop = choice_of(part), part.start + len(part.tokens)
        job = self._owners[choice]
        job.fingerprint = self.loaded.fingerprint
        if part.wanted == "all":
            following = choice.prompt[part.start + 1 : stop + 1]
            known = logits[: len(following)]
            job.read(choice, entries(known, following, choice.drawing.logprobs or 1))
        if stop < len(choice.tokens):
            return False
        if stop == len(choice.prompt):
            self.metrics.prompt_tokens += stop
            self.metrics.cached_tokens += choice.reused
        if choice.max_tokens == 0:
            job.end(choice)
            self._finish(job, choice)
            return False
        return True

    def _draw(self, choices: Sequence[Choice], logits: Sequence[Tensor]) -> None:
        """Give each of them its next token."""
        now = time.monotonic()
        for choice, entry in zip(choices, draw(logits, choices), strict=True):
            job = self._owners[choice]
            choice.tokens.append(entry.token)
            self._time(job, choice, now)
            if job.drew(choice, entry):
                self._finish(job, choice)

    def _time(self, job: Job, choice: Choice, now: float) -> None:
        self.metrics.generated_tokens += 1
        last = self._last_token.get(choice)
        if last is not None:
            self.metrics.between_tokens.observe(now - last)
        elif choice is job.choices[0]:
            self.metrics.first_token.observe(now - job.arrived)
        self._last_token[choice] = now

    def _finish(self, job: Job, choice: Choice) -> None:
        self.scheduler.remove(choice)
        job.unfinished.discard(choice)
        self._owners.pop(choice, None)
        self._last_token.pop(choice, None)

    def _forget(self, job: Job, end: str) -> None:
        for choice in list(job.unfinished):
            self._finish(job, choice)
        self.metrics.requests[end] += 1
        with self._changed:
            self._jobs.pop(job, None)

    def _drop_running(self, message: str) -> None:
        for row in self.scheduler.rows:
            if row.text is not None:
                job = self._owners[row.text]  # pyright: ignore[reportArgumentType]
                self._forget(job, "failed")
                job.fail(message)
            row.held, row.exact = [], 0


def choice_of(part: Part) -> Choice:
    """The choice a part belongs to."""
    assert isinstance(part.text, Choice)
    return part.text
