"""``adapruner --help``: written here, not by the parser of ``fit``, so that it is there before anything heavy is imported."""

from __future__ import annotations

from adapruner._version import __version__

#: Command -> what it does, in the order of the help page.
COMMANDS = {
    "prune": "prunes a model with text of its kind: the whole job, with the options that it needs",
    "fit": "the same with every option: prunes a model, recovers it, reports and exports",
    "validate": "perplexity of a model on the text that recipes are chosen on",
    "test": "perplexity of a model on held-out text",
    "predict": "continues prompts, token by token",
    "compare": "several methods over budgets and seeds, in one table",
    "export": "writes a run's model again: another precision, other shards, for llama.cpp, to the hub",
    "write-texts": "lets the dense model write text to prune it with, where there is no other",
    "inspect": "what a run, an export or a plan holds",
}
#: Those whose options are :class:`adapruner.cli.fit.PruningCLI`'s.
LIKE_FIT = ("fit", "validate", "test", "predict")
_PAGE = """\
adapruner {version}: makes a large language model smaller by structured pruning.

Whole attention heads and feed-forward channels go. Which ones is searched over calibration text and importance metrics together;
what is left is refitted, recovered with LoRA, measured and written as a folder that loads in plain transformers.

usage: adapruner COMMAND [options]

{commands}

examples:
  adapruner prune my-model --texts my-texts --fraction 0.3
  adapruner fit --config quickstart.yaml
  adapruner inspect runs/quickstart

options:
  adapruner COMMAND --help          the options of a command that matter; behind it a group, or all, for the others
  adapruner fit --config quickstart.yaml --print_config          every option of fit, with its value
  adapruner COMMAND --import my_metrics.py          metrics, samplers and the like of your own (all commands but inspect)
  adapruner --version

--config takes a file, or the name of a shipped configuration; several are laid over each other. What each group of options sets:
adapruner fit --help GROUP; tutorials: docs/index.md."""


def help_page() -> str:
    """The page."""
    listed = "\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items())
    return _PAGE.format(version=__version__, commands=f"commands:\n{listed}")
