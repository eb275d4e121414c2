"""What every section is made of: a title, how to read it, the answers, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from reports.page.answer import Answer, Model
from reports.page.markup import Html, code, count, escape, fold, join, note, number, table, tag
from reports.page.run import Run

Show = Callable[[Answer], list[Html]]
NOISY = ("test_clf", "eval_ece", "OOD", "logp_hist")  # the others take their images as they are


def section(key: str, title: str, *content: object) -> Html:
    heading = tag("h2", tag("a", title, href=f"#{key}"))
    return tag("section", heading, *content, id=key)


def reading(text: object) -> Html:
    return tag("p", text, class_="reading")


def answered(run: Run, name: str, show: Show, *flags: str) -> Html:
    """Every answer to this question, the newest first; without one the command that asks it."""
    parts: list[Html] = []
    for answer in run.answers.get(name, []):
        if parts:
            parts.append(tag("h3", f"Asked with other settings: {answer.path.name}"))
        if answer.missing:
            parts.append(note(f"{answer.path.name} lacks {', '.join(answer.missing)}."))
        if answer.models and answer.of_run() is None:
            parts.append(note(f"{answer.path.name} is about checkpoints of other runs."))
        parts += show(answer)
        parts.append(protocol(run, answer))
    return join(parts) if parts else not_evaluated(run, name, *flags)


def not_evaluated(run: Run, name: str, *flags: str) -> Html:
    command = run.command(name, *flags)
    if command is None:
        return note("Not evaluated; the folder holds no checkpoint to evaluate.")
    # A line may end between two words, not within a flag: browsers would break after its hyphens.
    words = join([tag("span", word) for word in command.split(" ")], " ")
    return tag(
        "div", tag("p", "Not evaluated. Run:"), tag("pre", tag("code", words)), class_="missing"
    )


def protocol(run: Run, answer: Answer) -> Html:
    """What the numbers depend on: split, images, noise, checkpoint, and everything else folded."""
    settings, agreed = answer.part("settings"), answer.part("protocol")
    first = answer.models[0] if answer.models else Model("", "", {}, False)
    # (name, value) pairs, in the order in which a reader asks for them
    facts: list[tuple[str, Any]] = [("split", answer.value(first, "dataset"))]
    facts.append(("images", count(found) if (found := answer.value(first, "n")) else None))
    if answer.record.get("eval") in (*NOISY, "attack"):
        noise = settings.get("sigma") if answer.record.get("eval") in NOISY else None
        facts.append(("sigma", agreed.get("sigma", noise)))
    above = {name for name, value in facts if value is not None}
    above |= {"version", "n", "dataset", "sigma"}
    lists = {key: value for key, value in agreed.items() if isinstance(value, dict) and value}
    facts += [(k, v) for k, v in agreed.items() if k not in above and not isinstance(v, dict)]
    facts.append(("protocol version", agreed.get("version")))
    facts.append(("checkpoint", ", ".join(checkpoint_name(m) for m in answer.models)))
    shown = [(name, plain(value)) for name, value in facts if value not in (None, "")]
    items = [tag("span", f"{name.replace('_', ' ')} ", tag("b", text)) for name, text in shown]
    parts = [tag("p", *items, class_="protocol")]
    for described in lists.values():
        lines = [tag("li", tag("b", k), ": ", plain(v)) for k, v in described.items()]
        parts.append(tag("ul", *lines, class_="small sets"))
    rows = [(key, code(plain(value))) for key, value in settings.items()]
    seconds = number(answer.record.get("seconds"))
    took = "" if seconds is None else f" ({seconds:,.0f} s)"
    if rows:
        listed = table(("setting", "value"), rows, text_columns=2)
        parts.append(fold(f"Settings of this evaluation{took}", listed))
    return tag("div", *parts)


def checkpoint_name(model: Model) -> str:
    """The file; with its folder where it belongs to another run."""
    parts = model.checkpoint.replace("\\", "/").split("/")
    return "/".join(parts[-1:] if model.own else parts[-2:])


def plain(value: Any) -> str:
    """A setting as one would type it; an object as JSON."""
    if isinstance(value, list):
        return " ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def labels(answer: Answer) -> list[Html]:
    """The models' names, the run's own marked where there are several."""
    several = len(answer.models) > 1
    return [tag("b", m.label) if several and m.own else escape(m.label) for m in answer.models]


def pictures(answer: Answer) -> str:
    """Whose numbers a picture shows, for its description."""
    return ", ".join(model.label for model in answer.models)


def own_features(answer: Answer, model: Model) -> bool:
    """Whether FID's features are a classifier's: no published number compares."""
    return str(answer.value(model, "features")).startswith("model")
