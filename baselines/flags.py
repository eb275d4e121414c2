"""Flags that the programs of this folder share with train_wrn.py: same names, defaults and help.

A program builds its parser with `make_parser`, adds flags of its own, and reads the command line
with `parse` before it imports torch, so that `--help` and error messages appear at once.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from runs.cli import Parser, check_id, processes
from training import flags

SHARED = (
    *("dataset", "data_root", "image_size", "n_valid", "sigma"),
    *("arch", "depth", "width", "norm", "dropout_rate"),
    *("optimizer", "lr", "warmup_iters", "decay_epochs", "decay_rate", "weight_decay"),
    *("batch_size", "n_epochs", "max_restarts", "max_steps", "max_minutes"),
    *("log_dir", "id", "resume", "overwrite", "eval_every"),
    *("ckpt_every", "ckpt_minutes", "print_every"),
    *("device", "threads", "seed", "amp"),
)


def make_parser(
    program: str,
    description: str,
    check: Callable[[Namespace], None],
    *,
    share: Sequence[str] = SHARED,
    defaults: dict[str, Any] | None = None,
    fixed: Sequence[str] = (),
) -> Parser:
    """Return a parser with the flags of `share`, in train_wrn.py's groups and with its help.

    `program`: the program's file name, also recorded as a setting. `check(settings)` sets `method`
    and raises UsageError for flags that contradict each other. `share`: names of SHARED, without
    the flags that the program declares itself. `defaults`: the defaults, by name, that differ from
    train_wrn.py's. `fixed`: names of the program's own flags that may not change on --resume.
    """
    parser = Parser(prog=program, allow_abbrev=False, description=description)
    parser.fixed, parser.verify = (*flags.FIXED_ON_RESUME, *fixed), check
    parser.set_defaults(program=program)
    for group in flags.build_parser()._action_groups:
        actions = [action for action in group._group_actions if action.dest in share]
        if not actions:
            continue
        new_group = parser.add_argument_group(group.title, group.description)
        for action in actions:
            action.default = (defaults or {}).get(action.dest, action.default)
            new_group._add_action(action)  # argparse's `parents` does this too, for all flags
    return parser


def parse(
    argv: Sequence[str], build: Callable[[], Parser], files: bool = False
) -> tuple[Namespace, set[str]]:
    """Return settings and given flags as training.flags.parse does; refuse a torchrun start."""
    if processes() > 1:
        parser = build()
        parser.error(f"{parser.prog} runs in one process: start it without torchrun")
    return flags.parse(argv, files, build)


def check_shared(s: Namespace) -> None:
    """Check data set, network and run name. Raises UsageError."""
    flags.check_dataset(s.dataset)
    flags.check_network(s)
    check_id(s.id)
