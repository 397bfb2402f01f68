"""The start-up messages of libraries, which would bury the few lines that a user should read, are left out."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Once, before Lightning and transformers do anything."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory .* exists and is not empty.*")  # earlier metrics are moved away
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated.*")
    for name in ("lightning.pytorch", "lightning.fabric"):  # device lists and advertisements; warnings stay
        logging.getLogger(name).setLevel(logging.WARNING)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
