"""Random operations on an engine with far too few blocks: the accounts hold after every one of them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tiny import FakeRunner, Watch, ask, fake_engine

from service.engine.sequence import Job, Sequence, Status

STEPS = 1500
LONGEST = 40  # tokens; a pool of 12 blocks of 4 holds one such sequence and a bit


class Chaos:
    """Adds, aborts, extends and steps at random."""

    def __init__(self, seed: int, speculation: bool) -> None:
        self.random = random.Random(seed)
        runner = FakeRunner()
        engine = fake_engine(
            num_blocks=12, max_rows=16, max_running=6, share=4, speculation=speculation, runner=runner
        )
        if speculation:
            engine.scheduler.speculator._best_length = lambda s, available, step: (  # type: ignore[union-attr]
                self.random.randint(0, max(0, min(available, 16 - step.rows))),
                0.5,
            )
        self.watch = Watch(engine)
        self.jobs: list[Job] = []
        self.alive: list[Sequence] = []

    def prompt(self) -> list[int]:
        """Often a beginning that others share, so that prefixes are found and waited for."""
        shared = [1, 2, 3, 4, 5, 6, 7, 8] * 3
        start = shared[: self.random.choice((0, 0, 4, 9, 16, 21))]
        return start + [self.random.randrange(12) for _ in range(self.random.randint(1, 12))]

    def add(self) -> None:
        """A new job, or one more sequence of an old one."""
        if not self.jobs or self.random.random() < 0.6:
            self.jobs.append(Job(salt=self.random.choice("ab"), tenant=self.random.choice("xyz")))
        prompt = self.prompt()
        params = {
            "max_new_tokens": self.random.randint(0, LONGEST - len(prompt)),
            "ignore_eos": self.random.random() < 0.7,
            "stop": self.random.choice(((), (), ("abc",), ("ka", "b"))),
        }
        job = self.random.choice(self.jobs[-5:])
        sequence = Sequence(job, len(self.alive), ask(prompt, **params), 0.0)
        self.watch.add([sequence])
        self.alive.append(sequence)

    def abort(self) -> None:
        """Any sequence ever seen, finished ones included."""
        if self.alive:
            self.watch.engine.abort([self.random.choice(self.alive)])

    def act(self) -> None:
        """One random operation."""
        kind = self.random.random()
        if kind < 0.25 and len(self.watch.engine.scheduler.waiting) < 30:
            self.add()
        elif kind < 0.32:
            self.abort()
        else:
            self.watch.step()
        self.watch.engine.scheduler.check()


@pytest.fixture(scope="module", params=[(seed, spec) for seed in range(4) for spec in (False, True)], ids=str)
def chaos(request: pytest.FixtureRequest) -> Chaos:
    run = Chaos(*request.param)
    for _ in range(STEPS):
        run.act()
    run.watch.finish()
    return run


def test_nothing_is_left_over_after_random_operations(chaos: Chaos) -> None:
    engine = chaos.watch.engine
    left = (
        len(engine.scheduler.running),
        len(engine.scheduler.waiting),
        len(engine.scheduler.prefix_cache._promised),
    )
    assert (engine.scheduler.pool.num_free, left) == (12, (0, 0, 0))


def test_every_job_forgets_its_sequences(chaos: Chaos) -> None:
    scheduler = chaos.watch.engine.scheduler
    held = Counter(sequence.job for sequence in (*scheduler.running, *scheduler.waiting))
    assert all(job.num_running == held[job] == 0 for job in chaos.jobs)


def test_every_sequence_finishes_or_was_aborted(chaos: Chaos) -> None:
    assert all(s.status is Status.FINISHED for s in chaos.watch.outcomes)


def test_random_operations_did_preempt(chaos: Chaos) -> None:
    assert chaos.watch.engine.scheduler.num_preemptions > 20


def test_random_operations_did_hit_the_prefix_cache(chaos: Chaos) -> None:
    assert chaos.watch.engine.scheduler.prefix_cache.num_hits > 20


def test_texts_do_not_depend_on_what_happened_around_them(chaos: Chaos) -> None:
    finished = [(s, o) for s, o in chaos.watch.outcomes.items() if o.finish_reason is not None]
    for sequence, outcome in finished[:200]:
        engine = fake_engine()
        watch = Watch(engine)
        [alone] = watch.add([Sequence(Job(), 0, sequence.request, 0.0)])
        watch.finish()
        assert outcome.said == alone.said
