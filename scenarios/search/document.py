"""The document of `whatif search --json`: the best plans by the closed form and by events, and why the others lost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from costmodel import units
from placement.plan import PlanError
from placement.schedules import ScheduleError
from placement.search.exhaustive import Candidate, Case, Counts, Limits, Outcome, search
from placement.step import analytic_step
from scenarios import checks
from scenarios.build import training_inputs
from scenarios.commands.output import SCHEMA_VERSION, tool_version
from scenarios.errors import Place, ScenarioError
from scenarios.load import LoadedScenario
from scenarios.search.axes import Asked
from scenarios.sweep import grid
from simulator.explain import TERMS
from simulator.predict import Played, play_setting, setting_of, summary

SLOW_S = 2.0
SMALL_SHARE = 0.002  # of the step: differences below are not put into words
_ROW = ("step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "cost_usd", "energy_j", "fits")
FIGURE = {"time": "step_time_s", "memory": "peak_memory_bytes", "cost": "cost_usd", "energy": "energy_j"}


@dataclass(frozen=True)
class Wanted:
    """What a person asks of a search. Limits are None where there are none."""

    objective: str = "time"
    top: int = 10
    play: int = 5  # the first so many are replayed as events
    orders: int = 20  # made and played at most for schedules that have no closed form
    max_memory_bytes: float | None = None
    max_gpus: int | None = None
    deadline_s: float | None = None
    budget_usd: float | None = None

    @property
    def constraints(self) -> dict[str, float | int]:
        named = ("max_memory_bytes", "max_gpus", "deadline_s", "budget_usd")
        return {name: getattr(self, name) for name in named if getattr(self, name) is not None}


def limits_of(wanted: Wanted, asked: Asked) -> Callable[[Case], Limits]:
    """Limits of one step, from those of the whole run. Raises ScenarioError where the run's length is not known."""
    tokens_of = {id(case): inputs.total_tokens for case, inputs in zip(asked.cases, asked.inputs, strict=True)}
    for option, most in (("--deadline", wanted.deadline_s), ("--budget-usd", wanted.budget_usd)):
        if most is not None and not all(tokens_of.values()):
            raise ScenarioError.at(Place(option), "is about the whole run: the scenario must say workload.tokens")

    def limits(case: Case) -> Limits:
        capacity = case.base.cluster.accelerator.memory.capacity_bytes
        most: dict[str, float] = {}
        steps = (tokens_of[id(case)] or 0.0) / (int(case.base.sequence) * case.global_batch)
        if wanted.deadline_s is not None:
            most["time"] = wanted.deadline_s / steps
        if wanted.budget_usd is not None:
            most["cost"] = wanted.budget_usd / steps
        return Limits(min(capacity, wanted.max_memory_bytes or capacity), most)

    return limits


def document(
    loaded: LoadedScenario, asked: Asked, wanted: Wanted, solver: str = "exhaustive",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Searches, replays the best as events, and says what came out. `settings`: what was set of the scenario.

    Raises ScenarioError.
    """
    progress = _Progress(loaded.file)
    began = progress.began
    try:
        found = search(asked.cases, asked.space, limits_of(wanted, asked), wanted.objective, wanted.top,
                       wanted.orders, progress)
    except ValueError as error:
        raise ScenarioError.at(Place(f"--objective {wanted.objective}"), str(error)) from None
    rows = _Rows(asked)
    best = [rows.of(one) for one in found.best]
    for number, row in enumerate(best):
        row["rank"] = number + 1
        row |= _against(best[0], row, wanted.objective) if number else {"why": "", "differences": [], "changed": {}}
        row["events"] = None
    for number, candidate in enumerate(found.best[: wanted.play]):
        if time.perf_counter() - began > SLOW_S:
            print(f"{loaded.file}: playing plan {number + 1} of {min(wanted.play, len(best))}", file=sys.stderr)
        best[number]["events"] = rows.events(candidate)
    _rank_events(best, wanted.objective)
    base = rows.own(loaded)
    counts = found.counts
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "tool_version": tool_version(), "kind": "search",
        "scenario": {"name": loaded.scenario.name, "description": loaded.scenario.description, "file": loaded.file,
                     "sha256": loaded.sha256, "inputs": loaded.raw, "set": dict(settings or {})},
        "objective": wanted.objective, "solver": solver, "constraints": wanted.constraints,
        "limit_bytes": max(limits_of(wanted, asked)(case).memory_bytes for case in asked.cases),
        "space": {"axes": [{"key": axis.key, "values": list(axis.values)} for axis in asked.axes],
                  "combinations": counts.combinations},
        "plans_evaluated": counts.priced, "feasible": counts.feasible,
        "counts": {"combinations": counts.combinations, "placed": counts.placed, "distinct": counts.distinct,
                   "divisible": counts.priced, "plans_evaluated": counts.priced, "feasible": counts.feasible,
                   "bounded": counts.bounded, "played": counts.played},
        "rejected": _rejected(found),
        "base": base, "best": best,
        "pareto": [rows.point(one) for one in found.pareto],
        "rank_changes": _rank_changes(best[: wanted.play]),
        "proof": _proof(found),
        "nearest_misses": [rows.miss(one, limits_of(wanted, asked)(one.case)) for one in found.nearest_misses],
        "fastest_that_does_not_fit": rows.of(found.fastest_miss) if found.fastest_miss else None,
    }
    result["answer"] = answer(result)
    wall_s = time.perf_counter() - began
    result["run"] = {"wall_s": wall_s, "pricing_s": progress.pricing_s,
                     "plans_per_s": counts.priced / progress.pricing_s if counts.priced else 0.0,
                     "date": datetime.now(UTC).isoformat(timespec="seconds")}
    return result


class _Progress:
    """Says once a second, after the first two, how many plans have been priced; knows how long that took."""

    def __init__(self, file: str) -> None:
        self.file, self.began = file, time.perf_counter()
        self.told, self.pricing_s = self.began + SLOW_S, 0.0

    def __call__(self, counts: Counts) -> None:
        now = time.perf_counter()
        if not counts.played:
            self.pricing_s = now - self.began
        if now > self.told:
            self.told = now + 1.0
            played = f", {counts.played:,} orders made" if counts.played else ""
            print(f"{self.file}: {counts.priced:,} plans of {counts.combinations:,} combinations priced{played}",
                  file=sys.stderr)


class _Rows:
    """Plans as rows of the document."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.inputs = {id(case): inputs for case, inputs in zip(asked.cases, asked.inputs, strict=True)}

    def values(self, candidate: Candidate) -> dict[str, Any]:
        return self.asked.as_written(candidate.values)

    def of(self, candidate: Candidate) -> dict[str, Any]:
        return self._row(candidate, Played(candidate.setting, analytic_step(candidate.setting, self._batch(candidate))))

    def _batch(self, candidate: Candidate) -> int:
        return candidate.case.global_batch

    def _row(self, candidate: Candidate, played: Played) -> dict[str, Any]:
        inputs = replace(self.inputs[id(candidate.case)], plan=candidate.setting.plan)
        numbers, _ = summary(inputs, played)
        return {
            "set": self.values(candidate), "gpus": candidate.case.gpus,
            "data": int(candidate.setting.plan.data),
            **{name: numbers[name] for name in _ROW},
            "peak_memory_bytes": played.needed_bytes, "breakdown_s": numbers["breakdown_s"],
            "bubble_fraction": numbers["bubble_fraction"],
        }

    def events(self, candidate: Candidate) -> dict[str, Any] | None:
        """The plan played; None where its schedule does not run it."""
        try:
            played = play_setting(candidate.setting, self._batch(candidate))
        except (PlanError, ScheduleError):
            return None
        row = self._row(candidate, played)
        return {key: row[key] for key in (*_ROW, "peak_memory_bytes", "breakdown_s")}

    def point(self, candidate: Candidate) -> dict[str, Any]:
        named = {FIGURE[name]: value for name, value in candidate.scores.items() if name in FIGURE}
        return {"set": self.values(candidate), "gpus": candidate.case.gpus, **named}

    def miss(self, candidate: Candidate, limits: Limits) -> dict[str, Any]:
        """A plan that misses a limit: memory, or where it fits the deadline or the budget."""
        misses_by = candidate.scores["memory"] - limits.memory_bytes
        if misses_by > 0:
            needs, more = (units.show(size, "B") for size in (candidate.scores["memory"], misses_by))
            text = f"needs {needs} a GPU, {more} more than there is"
            return {**self.point(candidate), "misses_by_bytes": misses_by, "text": text}
        inputs = self.inputs[id(candidate.case)]
        steps = (inputs.total_tokens or 0.0) / (inputs.sequence * inputs.global_batch)
        over = limits.ratios(candidate.scores)
        name = max(over, key=lambda one: over[one])
        whole, most = steps * candidate.scores[name], steps * limits.most[name]
        takes, over_by = (f"{value / 86400:,.3g} days" if name == "time" else f"${value:,.0f}"
                          for value in (whole, whole - most))
        text = f"fits the memory, but the run takes {takes}, {over_by} over the limit"
        return {**self.point(candidate), "misses_by_bytes": None, "text": text}

    def own(self, loaded: LoadedScenario) -> dict[str, Any] | None:
        """The scenario's own plan as a row; None where it cannot be laid."""
        if checks.relations(loaded.scenario, loaded.model, loaded.cluster):
            return None
        inputs = training_inputs(loaded, "analytic")
        case = Case(setting_of(inputs), inputs.global_batch, {}, inputs.price_usd_per_gpu_hour)
        self.inputs[id(case)] = inputs
        values: dict[str, Any] = {}
        for axis in self.asked.axes:
            block, _, name = axis.field.partition(".")
            if axis.is_priced_as_array:
                values[axis.field] = getattr(case.base.plan if block == "plan" else case.base.stack, name)
            elif (written := loaded.document.get(tuple(axis.key.split(".")))) is not None:
                values[axis.field] = written
            elif axis.key == "cluster.gpus":
                values[axis.field] = case.gpus
        self._own = case  # kept alive: its id is a key
        try:
            return self.of(Candidate(case, case.base, values, {}))
        except (PlanError, ScheduleError):
            return None


def _against(best: Mapping[str, Any], row: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """Why a plan is behind the best: the terms of the step in which they differ, largest first, and their keys."""
    names = dict.fromkeys([*best["breakdown_s"], *row["breakdown_s"]])
    # what costs money or energy is time on every GPU: with other numbers of them, seconds alone say nothing
    counted = objective in ("cost", "energy") and best["gpus"] != row["gpus"]
    ours, theirs = (one["gpus"] if counted else 1 for one in (row, best))
    differences = [
        {"category": name,
         "seconds": ours * row["breakdown_s"].get(name, 0.0) - theirs * best["breakdown_s"].get(name, 0.0)}
        for name in names
    ]
    differences.sort(key=lambda one: -abs(one["seconds"]))
    small_s = SMALL_SHARE * best["step_time_s"] * theirs
    unit = "GPU-s" if counted else "s"
    told = [one for one in differences if abs(one["seconds"]) > small_s][:3] or differences[:1]
    terms = ", ".join(
        f"{units.show(abs(one['seconds']), unit)} {'more' if one['seconds'] > 0 else 'less'} "
        f"{TERMS.get(one['category'], one['category'])}" for one in told if one["seconds"]
    )
    changed = {key: [best["set"].get(key), value] for key, value in row["set"].items() if best["set"].get(key) != value}
    behind = _behind(best, row, objective)
    return {"why": f"{behind}: {terms}" if terms else behind, "changed": changed,
            "differences": [{**one, "unit": unit} for one in differences if one["seconds"]]}


def _behind(best: Mapping[str, Any], row: Mapping[str, Any], objective: str) -> str:
    figure = FIGURE[objective]
    by = (row[figure] or 0.0) - (best[figure] or 0.0)
    if by == 0.0:
        return "as good by this objective; it stands behind by the next one"
    share = f"{by / best[figure]:.2%}"
    return {
        "time": f"{units.show(by, 's')} slower than the best ({share})",
        "memory": f"needs {units.show(by, 'B')} more than the best ({share})",
        "cost": f"a step costs ${by:.3g} more than the best ({share})",
        "energy": f"a step takes {units.show(by, 'J')} more than the best ({share})",
    }[objective]


def _rank_events(best: Sequence[dict[str, Any]], objective: str) -> None:
    """The rank of every plan by events among those played; what does not fit as played stands last."""
    played = [row for row in best if row["events"]]
    played.sort(key=lambda row: (not row["events"]["fits"], row["events"][FIGURE[objective]]))
    for rank, row in enumerate(played, 1):
        row["events"]["rank"] = rank


def _rank_changes(best: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    changes = []
    for row in best:
        events = row["events"]
        if events is None:
            text = f"rank {row['rank']} of the closed form cannot be played"
            changes.append({"rank": row["rank"], "events_rank": None, "text": text})
        elif events["rank"] != row["rank"]:
            text = f"rank {row['rank']} of the closed form is rank {events['rank']} by events"
            text += "" if events["fits"] else " and does not fit as played"
            changes.append({"rank": row["rank"], "events_rank": events["rank"], "text": text})
    return changes


def _rejected(found: Outcome) -> list[dict[str, Any]]:
    counts = found.counts
    reasons = dict(counts.rejected)
    if counts.combinations > counts.placed:
        reasons["degrees that the GPUs cannot be dealt to"] = counts.combinations - counts.placed
    if counts.placed > counts.distinct:
        reasons["the same plan as another combination"] = counts.placed - counts.distinct
    return [{"reason": reason, "plans": plans} for reason, plans in sorted(reasons.items(), key=lambda of: -of[1])]


def _proof(found: Outcome) -> dict[str, Any]:
    counts = found.counts
    text = "every distinct plan of the space was priced by its closed form or excluded by a rule"
    if counts.bounded:
        others = "be among those listed" if found.list_is_proven else "better the best"
        text += (f"; of {counts.bounded:,} plans whose schedule has no closed form {counts.played:,} were made and "
                 f"played, the others cannot {others} by a lower bound")
    if found.gap:
        text += f", except by at most {found.gap:.1%}"
    status = "none" if not found.best and found.gap else "bounded" if found.gap else "optimal"
    return {"status": status, "of": "closed form over the listed axes", "gap": found.gap, "text": text}


def answer(result: Mapping[str, Any]) -> str:
    """The result in one or two sentences."""
    best, base = result["best"], result["base"]
    if not best:
        return _nothing(result)
    first = best[0]
    figure = FIGURE[result["objective"]]
    plan = ", ".join(f"{key.rpartition('.')[2]} {_said(value)}" for key, value in first["set"].items())
    step, memory = units.show(first["step_time_s"], "s"), units.show(first["peak_memory_bytes"], "B")
    text = f"The best of {result['counts']['plans_evaluated']:,} plans takes {step} a step and {memory} a GPU: {plan}."
    if base and base["fits"] and first[figure] is not None and base[figure]:
        gain = 1.0 - first[figure] / base[figure]
        less = f"{abs(gain):.1%} {'less' if gain >= 0 else 'more'} {result['objective']} than"
        text += f" That is {less if abs(gain) >= 0.0005 else 'as good as'} the scenario's own plan."
    elif base and not base["fits"]:
        text += " The scenario's own plan does not fit."
    return text + _by_events(best)


def _by_events(best: Sequence[Mapping[str, Any]]) -> str:
    """What playing the best plans changes about the answer."""
    other = next((row for row in best if row["events"] and row["events"]["rank"] == 1), None)
    if other is None or other["rank"] == 1:
        return ""
    step = units.show(other["events"]["step_time_s"], "s")
    return f" Played as events, rank {other['rank']} comes first ({step} a step)."


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(str, value)) or "none"
    return grid.text(value) if isinstance(value, bool | dict) else str(value)


def _nothing(result: Mapping[str, Any]) -> str:
    counts = result["counts"]
    if not counts["plans_evaluated"]:
        reason = result["rejected"][0]["reason"] if result["rejected"] else "there is none"
        return f"No plan of the space can be laid over this model and cluster (first of all: {reason})."
    if result["proof"]["gap"]:
        return (f"No plan has been found that fits, but of {counts['bounded']:,} whose schedule has no closed form "
                f"only {counts['played']:,} were made and played; --orders allows more.")
    text = f"No plan of {counts['plans_evaluated']:,} fits"
    if not result["nearest_misses"]:
        return f"{text}: what lies on the host is more than the nodes hold."
    miss = result["nearest_misses"][0]
    plan = ", ".join(f"{key} {_said(value)}" for key, value in miss["set"].items())
    if miss["misses_by_bytes"] is None:
        return f"{text} the limits of the run; the nearest {miss['text']} ({plan})."
    limit, misses_by = units.show(result["limit_bytes"], "B"), units.show(miss["misses_by_bytes"], "B")
    return f"{text} {limit} a GPU; the nearest misses by {misses_by} ({plan})."
