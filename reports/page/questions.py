"""The sections on classification, calibration and robustness."""

from __future__ import annotations

from reports.page import markup
from reports.page.answer import Answer, Model
from reports.page.markup import Html, count, decimals, number, percent, table, tag
from reports.page.paper import NETWORK, Paper
from reports.page.run import Run
from reports.page.sections import answered, labels, pictures, reading, section


def classification(run: Run, paper: Paper) -> Html:
    def show(answer: Answer) -> list[Html]:
        rows: list[list[object]] = []
        head = ("model", "accuracy", "top-5", "NLL", "images", "SGLD steps before")
        for name, m in zip(labels(answer), answer.models, strict=True):
            keys = ("accuracy", "top5", "nll", "n", "n_steps")
            acc, top5, nll, n, steps = (answer.value(m, key) for key in keys)
            shares = [percent(acc), percent(top5), decimals(nll, 4)]
            rows.append([name, *shares, count(n), count(steps or 0)])
        own = answer.of_run()
        theirs = None if own is None else paper.accuracy(str(answer.value(own, "dataset")))
        if theirs is not None:
            rows.append([f"paper ({NETWORK}), {paper.method}", percent(theirs, 1), *[""] * 4])
        return [table(head, rows)]

    text = (
        "Accuracy: the share of images whose largest logit is the label's. Top-5: the label is "
        "among the five largest. NLL: mean of \N{MINUS SIGN}log q(y|x) in nats; guessing gives log "
        "C."
    )
    body = answered(run, "test_clf", show)
    return section("classification", "Classification", reading(text), body)


def calibration(run: Run, paper: Paper) -> Html:
    def show(answer: Answer) -> list[Html]:
        whose = pictures(answer)
        caption = "Bars: accuracy in each bin of confidence; a perfect model's reach the diagonal."
        images = [
            markup.picture(path, f"Reliability diagram of {whose}", caption)
            for path in answer.pictures()
        ]

        def row(title: str, key: str, digits: int | None = None) -> list[object]:
            values = [answer.value(m, key) for m in answer.models]
            return [title, *(decimals(v, digits) if digits else percent(v) for v in values)]

        rows = [row("ECE", "ece"), row("accuracy", "accuracy"), row("NLL", "nll", 4)]
        rows += [row("Brier score", "brier", 4), row("temperature", "temperature", 3)]
        rows.append(row("ECE after scaling", "ece_temperature"))
        head: list[object] = ["", *labels(answer)]
        own = answer.of_run()
        theirs = None if own is None else paper.ece(str(answer.value(own, "dataset")))
        if theirs is not None:
            head.append(f"paper ({NETWORK})")
            rows = [[*cells, percent(theirs) if i == 0 else ""] for i, cells in enumerate(rows)]
        pair = tag("div", *images, table(head, rows), class_="pair")
        return [pair, *(bins(answer, m) for m in answer.models)]

    text = (
        "A calibrated classifier that says 80 % is right on 80 % of such images. ECE: the gap "
        "between confidence and accuracy, averaged over 20 bins weighted by their images; 0 is "
        "best. Temperature: what the logits are divided by after fitting on validation images; "
        "above 1 the model was over-confident. Brier score: 0 is best, 2 worst."
    )
    body = answered(run, "eval_ece", show)
    return section("calibration", "Calibration", reading(text), body)


def bins(answer: Answer, model: Model) -> Html:
    rows = []
    for b in answer.rows(model, "bins"):
        span = f"{decimals(b.get('lower'), 2)} to {decimals(b.get('upper'), 2)}"
        gap = None
        acc, conf = number(b.get("accuracy")), number(b.get("confidence"))
        if acc is not None and conf is not None:
            gap = acc - conf
        cells = [percent(conf), percent(acc), percent(gap)]
        rows.append([span, count(b.get("count")), *cells])
    head = ("confidence", "images", "mean confidence", "accuracy", "gap")
    name = f"The bins in numbers: {model.label}"
    return markup.fold(name, table(head, rows) if rows else markup.note("No bins were recorded."))


def robustness(run: Run, paper: Paper) -> Html:
    def show(answer: Answer) -> list[Html]:
        whose = pictures(answer)
        distance = answer.record.get("distance") or (
            answer.value(answer.models[0], "distance") if answer.models else None
        )
        norm = {"Linf": "L\N{INFINITY}", "L2": "L2"}.get(str(distance), str(distance))
        images = [
            markup.picture(path, f"Accuracy under attack of {whose}, {norm}")
            for path in answer.pictures()
        ]
        found = [
            {number(r.get("eps")): r.get("accuracy") for r in answer.rows(m, "rows")}
            for m in answer.models
        ]
        radii = sorted({eps for rows in found for eps in rows if eps is not None})
        rows = [[radius(e, str(distance)), *(percent(r.get(e)) for r in found)] for e in radii]
        head = (f"radius {norm}", *labels(answer))
        details = [("attack", "attack"), ("steps", "steps"), ("restarts", "restarts")]
        details += [("SGLD steps before classifying", "n_steps_refine")]
        first = answer.models[0] if answer.models else Model("", "", {}, False)
        facts = [f"{name} {answer.value(first, key)}" for name, key in details
                 if answer.value(first, key) is not None]  # fmt: skip
        pair = tag("div", *images, table(head, rows), class_="pair")
        return [pair, tag("p", ", ".join(facts) + ".", class_="small")]

    text = (
        "Accuracy after every pixel (L\N{INFINITY}) or the image as a whole (L2) was moved by at "
        "most the radius to fool the model; pixels are in [0, 1]. At radius 0 it is the plain "
        "accuracy without noise. An attack gives an upper bound: a stronger one may find more. The "
        "paper prints its curves (Figure 4) without numbers."
    )
    body = answered(run, "attack", show, "--distance", "Linf")
    return section("robustness", "Robustness", reading(text), body)


def radius(eps: float, distance: str) -> str:
    """8/255 where it is such a fraction, else digits."""
    steps = 255 * eps
    if distance == "Linf" and abs(steps - round(steps)) < 1e-6:
        return f"{round(steps)}/255"
    return f"{eps:.4g}"
