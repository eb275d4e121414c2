"""The sections on what log q(x) tells: OOD detection and histograms."""

from __future__ import annotations

from reports.page import markup
from reports.page.answer import Answer, items
from reports.page.markup import (
    NONE,
    Html,
    count,
    decimals,
    note,
    number,
    percent,
    table,
    tag,
)
from reports.page.paper import NETWORK, Paper, canonical
from reports.page.run import Run
from reports.page.sections import answered, labels, pictures, reading, section
from runs.screen import reversed_order

SCORES = {
    "px": "log q(x)",
    "py": "max q(y|x)",
    "pxy": "max f(x)[y]",
    "pxgrad": "\N{MINUS SIGN}log \N{DOUBLE VERTICAL LINE}d log q(x)/dx\N{DOUBLE VERTICAL LINE}",
    "pxsim": "contrastive log q(x|y)",
    "knn": "k-th nearest neighbour",
    "entropy": "\N{MINUS SIGN}entropy of q(y|x)",
}


def score_name(score: object) -> str:
    return f"{score}: {SCORES[score]}" if isinstance(score, str) and score in SCORES else str(score)


def ood(run: Run, paper: Paper) -> Html:
    def show(answer: Answer) -> list[Html]:
        several = len(answer.models) > 1
        rows, beside = [], False
        for name, m in zip(labels(answer), answer.models, strict=True):
            in_dataset = str(answer.value(m, "in_dataset"))
            for row in answer.rows(m, "rows"):
                out, score = str(row.get("ood_dataset")), str(row.get("score_fn"))
                known = paper.auroc(in_dataset, out, score) if m.own else None
                beside = beside or known is not None
                theirs = (
                    NONE if known is None else f"{known[0]:.2f} \N{PLUS-MINUS SIGN} {known[1]:.2f}"
                )
                share = [percent(row.get("fpr95")), decimals(row.get("aupr"), 4)]
                ratio = f"{count(row.get('n_in'))} : {count(row.get('n_out'))}"
                first = [name] if several else []
                auroc = bar(row.get("auroc"))
                rows.append([*first, out, score_name(score), auroc, theirs, *share, ratio])
        drop = 4 if several else 3  # the paper's column, where it has no number for any row
        head = [*(["model"] if several else []), "out-of-distribution", "score", "AUROC"]
        head += [f"paper ({NETWORK})", "FPR at 95 % TPR", "AUPR", "in : out"]
        if not beside:
            head, rows = [x for i, x in enumerate(head) if i != drop], [
                [x for i, x in enumerate(row) if i != drop] for row in rows
            ]  # fmt: skip
        parts = [table(head, rows, text_columns=drop - 1)]
        ins = {str(answer.value(m, "in_dataset")) for m in answer.models}
        parts.insert(0, tag("p", "In-distribution: ", tag("b", ", ".join(sorted(ins))), "."))
        if beside:
            parts.append(beside_text(paper))
        for name, m in zip(labels(answer), answer.models, strict=True):
            told = reversed_order(
                [
                    {"auroc": measured, **{k: str(r.get(k)) for k in ("ood_dataset", "score_fn")}}
                    for r in answer.rows(m, "rows")
                    if (measured := number(r.get("auroc"))) is not None
                ]
            )
            if told:
                parts.append(note(*([name, ": "] if several else []), told))
        return [*parts, *skipped(answer)]

    text = (
        "How well a score tells the model's own test images (higher) from others (lower). AUROC: "
        "the probability that one of its own scores above one of the others; 0.5 is a coin, below "
        "it the score has the order reversed, and at 0 every one of the others scores higher. FPR "
        "at 95 % TPR: the share of foreign images let in "
        "where 95 % of the own ones are; 0 is best. AUPR depends on the ratio of the two sets."
    )
    sets = ("interp", "photos", "uniform", "gaussian") if own_set(run) == "digits" else ("all",)
    body = answered(run, "OOD", show, "--score_fn", "px", "py", "--ood_dataset", *sets)
    return section("ood", "Out-of-distribution detection", reading(text), body)


def beside_text(paper: Paper) -> Html:
    text = (
        f"Paper: {paper.method} in Table 1 of HDGE (arXiv 2007.09070), trained on CIFAR-10 with "
        f"{NETWORK}; the run's images of the other sets need not be the paper's."
    )
    return tag("p", text, class_="small")


def skipped(answer: Answer) -> list[Html]:
    rows = items(answer.record.get("skipped"), dict)
    return [note(f"Skipped: {r.get('ood_dataset')} ({r.get('reason')}).") for r in rows]


def bar(value: object) -> Html:
    """A number between 0 and 1 beside a bar with a mark at 0.5."""
    found = number(value)
    if found is None:
        return markup.escape(NONE)
    width = f"width: {100 * min(max(found, 0), 1):.1f}%"
    track = tag("span", tag("i", style=width), class_="track", aria_hidden="true")
    return tag("span", track, decimals(found, 4), class_="bar")


def histograms(run: Run, paper: Paper) -> Html:
    def show(answer: Answer) -> list[Html]:
        whose = pictures(answer)
        score = score_name(answer.record.get("score_fn"))
        caption = f"{score}; green: in-distribution, red: the other set; shared bins in a panel."
        images = [
            markup.picture(path, f"Histograms of {score} for {whose}", caption)
            for path in answer.pictures()
        ]
        rows = []
        for name, m in zip(labels(answer), answer.models, strict=True):
            sets = answer.value(m, "sets")
            for key, found in sets.items() if isinstance(sets, dict) else []:
                numbers = found if isinstance(found, dict) else {}
                q = numbers.get("quantiles")
                q = q if isinstance(q, dict) else {}
                cells = [decimals(numbers.get(k), 3) for k in ("mean", "std")]
                cells += [decimals(q.get(k), 3) for k in ("0.05", "0.5", "0.95")]
                auroc = decimals(numbers.get("auroc"), 4)
                rows.append([name, key, count(numbers.get("n")), *cells, auroc])
        head = ("model", "data set", "images", "mean", "std", "5 %", "median", "95 %", "AUROC")
        return [*images, table(head, rows, text_columns=2)]

    text = (
        "Where log q(x) detects foreign images, their histogram lies left of the model's own. The "
        "scores are up to a constant that differs from model to model: compare shapes and overlaps "
        "within one model. AUROC is against the first set."
    )
    own = own_set(run)
    others = {"digits": ("photos", "interp"), "svhn": ("cifar10", "cifar100")}
    other = others.get(own, ("svhn", "cifar100" if own == "cifar10" else "cifar10"))
    body = answered(run, "logp_hist", show, "--datasets", own, *other)
    return section("histograms", "Histograms of the score", reading(text), body)


def own_set(run: Run) -> str:
    return canonical(str(run.settings.get("dataset", "cifar10")))
