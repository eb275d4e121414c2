"""The flags that the programs of this folder share: train_wrn.py's, by name, default and help.

A program builds its parser with `make_parser`, adds its own flags, and reads the command line
with `parse` before it imports torch, so that `--help` and a mistake are answered at once.
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

    `program`: the file's name, which is also a setting. `check` raises UsageError for what no
    single flag can tell, and sets `method`. `share`: names without dashes, of SHARED; leave out
    what the program declares itself. `defaults`: where the program's differ from train_wrn.py's.
    `fixed`: names of flags of its own that may not change on --resume.
    """
    parser = Parser(prog=program, allow_abbrev=False, description=description)
    parser.fixed, parser.verify = (*flags.FIXED_ON_RESUME, *fixed), check
    parser.set_defaults(program=program)
    for group in flags.build_parser()._action_groups:
        chosen = [action for action in group._group_actions if action.dest in share]
        if not chosen:
            continue
        target = parser.add_argument_group(group.title, group.description)
        for action in chosen:
            action.default = (defaults or {}).get(action.dest, action.default)
            target._add_action(action)  # as argparse's own `parents` does, but not all of them
    return parser


def parse(
    argv: Sequence[str], build: Callable[[], Parser], files: bool = False
) -> tuple[Namespace, set[str]]:
    """Return what training.flags.parse does, of a program that torchrun may not start."""
    if processes() > 1:
        parser = build()
        parser.error(f"{parser.prog} runs in one process: start it without torchrun")
    return flags.parse(argv, files, build)


def check_shared(s: Namespace) -> None:
    """Check data set, network and run name. Raises UsageError."""
    flags.check_dataset(s.dataset)
    flags.check_network(s)
    check_id(s.id)
