"""Outcomes as Markdown and as JSON."""

from dataclasses import asdict
from typing import Any

from bench.compare import Goal, Outcome, Spread


def number(value: float) -> str:
    """Three digits that count: `1.78`, `12.3`, `48,210`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(figure: Spread) -> str:
    """`48,210 (47,900–48,500)`."""
    return f"{number(figure.median)} ({number(figure.least)}–{number(figure.greatest)})"


def goal_line(goal: Goal) -> str:
    """`reached: ours / tarfile 9.2 (9–10) ×, goal ≥ 7 ×`."""
    state = "reached" if goal.reached else "NOT reached"
    unit = goal.unit if goal.unit == "×" else f" {goal.unit}"
    return f"{state}: {goal.name}: {spread(goal.figure)}{unit}, goal ≥ {number(goal.target)}{unit}"


def markdown(name: str, outcome: Outcome) -> str:
    """Heading, table of rates, goals, notes."""
    rounds = len(next(iter(outcome.rates.values())))
    lines = [
        f"## {name}: {outcome.title}",
        "",
        f"n = {outcome.num:,} a round, {rounds} rounds, median (range).",
        "",
        f"| | {outcome.unit} |",
        "|---|---|",
        *(f"| {row} | {spread(Spread.of(values))} |" for row, values in outcome.rates.items()),
        "",
        *(f"- {goal_line(goal)}" for goal in outcome.goals),
        *(f"- {note}" for note in outcome.notes),
    ]
    return "\n".join(lines) + "\n"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Every round's rate, and the goals with `reached`."""
    goals = [{**asdict(goal), "reached": goal.reached} for goal in outcome.goals]
    return {**asdict(outcome), "goals": goals}
