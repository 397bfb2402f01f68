"""``adapruner --help``: written here, not by the parser of ``fit``, so that it is there before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping

from adapruner._version import __version__

_PAGE = """\
adapruner {version}: makes a large language model smaller by structured pruning.

Whole attention heads and feed-forward channels go. Which ones is searched over calibration text and importance metrics together;
what is left is refitted, recovered with LoRA, measured and written as a folder that loads in plain transformers.

usage: adapruner COMMAND [options]

{commands}

examples:
  adapruner fit --config quickstart.yaml
  adapruner fit --config local.yaml --model.name_or_path my-model --pruning.budget.pruned_fraction 0.3
  adapruner inspect runs/quickstart

options:
  adapruner COMMAND --help          every option of a command
  adapruner fit --config quickstart.yaml --print_config          every option of fit, with its value
  adapruner COMMAND --import my_metrics.py          metrics, samplers and the like of your own (all commands but inspect)
  adapruner --version

--config takes a file, or the name of a shipped configuration; several are laid over each other. What each group of options sets,
and more examples: README.md."""


def help_page(commands: Mapping[str, str]) -> str:
    """The page.

    Args:
        commands: name -> what it does, in the order of the page.
    """
    listed = "\n".join(f"  {name:<10} {what}" for name, what in commands.items())
    return _PAGE.format(version=__version__, commands=f"commands:\n{listed}")
