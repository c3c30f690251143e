"""The end of a search: every reported network on test images, once each, and its costs recounted."""

from __future__ import annotations

from collections.abc import Sequence

from amc.pool.pool import Pool
from amc.problem.bounds import confirm_costs
from amc.problem.dense import remembered_outputs
from amc.problem.layer_patterns import layer_patterns
from amc.problem.prepare import Prepared
from amc.scoring.paired import resampled, standard_error
from amc.scoring.scorer import Outputs, Score
from amc.search.confirm import Confirmation, Confirmed
from amc.search.episode import Episode
from amc.search.result import Images, NetworkReport, SearchResult, Stopped, with_provenance
from amc.search.state import Progress
from amc.search.stopping import Clock
from amc.search.tools import Reported, SplitName, Tools, score_reported
from envs.space.assignment import Key


def conclude(
    prepared: Prepared,
    pool: Pool,
    tools: Tools,
    dense: Outputs | None,
    confirmation: Confirmation,
    played: Progress,
    stopped: Stopped,
    clock: Clock,
) -> SearchResult:
    """Reports the networks; the only place where networks are scored on test images.

    Raises:
        CountMismatch: If a real network costs other than was foretold, or more than a budget (our mistake, never the
            user's).
    """
    setup, start, found = prepared.setup, confirmation.start, confirmation.found
    pruned = {"uniform": confirmation.uniform, **({"start": start} if start else {}), "found": found}
    distinct = {one.assignment.key: one for one in pruned.values()}
    dense_score, tests = _scores(prepared, pool, tools, dense, list(distinct.values()))
    whole = Confirmed(setup.dense(), None, dense_score, setup.task.network)
    reports: dict[Key, NetworkReport] = {
        key: _report(prepared, one, tests[key], bounded=True) for key, one in distinct.items()
    }
    dense_report = _report(prepared, whole, tests[whole.assignment.key], bounded=False)
    uncounted = setup.anatomy.uncounted
    episodes = [line for line in played.lines if isinstance(line, Episode)]
    scored = sum(episode.evaluation.images for episode in episodes if episode.evaluation.image_forwards)
    return SearchResult(
        task=setup.task.name,
        measure=setup.task.metric.measure,
        budgets=dict(setup.constraint.limits()),
        seed=prepared.config.seed,
        reports={"dense": dense_report, **{name: reports[one.assignment.key] for name, one in pruned.items()}},
        policy=with_provenance(prepared.policy(found.assignment), prepared.config),
        networks={"dense": setup.task.network, **{name: one.network for name, one in pruned.items()}},
        episodes=len(played.lines),
        stopped=stopped,
        evaluations=prepared.ledger.evaluations,
        image_forwards=prepared.ledger.image_forwards,
        seconds=clock.elapsed(),
        failures=len(played.lines) - len(episodes),
        images=Images(scored, len(played.lines) * len(prepared.measurement.images)),
        workers=pool.usage(),
        patterns=layer_patterns(setup, found.assignment),
        uncounted=uncounted,
        remarks=(*confirmation.remarks, *_left_out(uncounted)),
    )


def _scores(
    prepared: Prepared, pool: Pool, tools: Tools, dense: Outputs | None, pruned: Sequence[Confirmed]
) -> tuple[Score, dict[Key, Score]]:
    """The dense network on validation images, and every network on test images, by assignment."""
    whole = prepared.setup.dense()
    outputs: dict[SplitName, Outputs | None] = {
        "validation": dense,
        "test": remembered_outputs(prepared.setup, tools.splits["test"]),
    }
    wanted = [Reported(whole, None, split) for split, known in outputs.items() if known is None]
    wanted += [Reported(one.assignment, one.state, "test") for one in pruned if one.assignment != whole]
    answers = pool.map(score_reported, tools, dense, wanted)
    scores = {(one.split, one.assignment.key): answer.result() for one, answer in zip(wanted, answers, strict=True)} | {
        (split, whole.key): tools.scorer.of_outputs(known, tools.splits[split])
        for split, known in outputs.items()
        if known is not None
    }
    tests = {key: score for (split, key), score in scores.items() if split == "test"}
    return scores["validation", whole.key], tests


def _left_out(uncounted: Sequence[str]) -> tuple[str, ...]:
    """What has to be said where some operators are in no cost."""
    named = f"no cost counts these operators of the network: {', '.join(uncounted)}; budgets hold for all the others"
    return (named,) if uncounted else ()


def _report(prepared: Prepared, one: Confirmed, test: Score, *, bounded: bool) -> NetworkReport:
    """The metric on both splits and the recounted costs of one network."""
    setup = prepared.setup
    costs = setup.real_costs(one.network, one.assignment.decisions.patterns)
    confirm_costs(costs, setup.constraint, one.assignment.values, bounded=bounded)
    scores = {"validation": one.score, "test": test}
    mean = setup.task.metric.is_mean
    values = {} if mean else {split: resampled(score, split) for split, score in scores.items()}
    return NetworkReport(
        metric={split: score.value for split, score in scores.items()},
        costs=costs,
        key=one.assignment.key,
        each={split: score.each for split, score in scores.items()} if mean else {},
        resampled=values,
        standard_error={split: standard_error(score, values.get(split)) for split, score in scores.items()},
    )
