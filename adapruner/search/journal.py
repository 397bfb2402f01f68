"""The study on disk: opened, checked for belonging to this search, mended after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapruner.errors import StudyError

FILE = "study.journal"
KILLED = "killed"


def check_journal(folder: Path, identity: dict[str, Any]) -> None:
    """Opens the study in ``folder``, if there is one, so that a journal that cannot be used is refused before heavy work.

    Raises:
        StudyError: if the journal belongs to another study or is damaged.
    """
    if (folder / FILE).exists():
        open_study(folder, identity, None)


def open_study(folder: Path, identity: dict[str, Any], objectives: int | None) -> Any:
    """The Optuna study of this folder, made if there is none; trials that a kill left running are marked as such.

    Args:
        identity: what the trials' values depend on.
        objectives: 1 or 2, or ``None`` for as many as the journal has.

    Raises:
        StudyError: as :func:`check_journal`.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal, identity = folder / FILE, json.loads(json.dumps(identity))
    _drop_torn_line(journal)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        if objectives is None:
            study = optuna.load_study(study_name="adapruner", storage=storage)
        else:
            directions = ["minimize"] * objectives
            study = optuna.create_study(study_name="adapruner", storage=storage, directions=directions, load_if_exists=True)
    except Exception as error:  # the journal is read here; whatever it holds, the user gets one line
        raise StudyError(
            f"search: expected a sound journal in {journal}, got damage ({type(error).__name__}); move it away to search anew"
        ) from error
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", identity)
    elif known != identity:
        different = sorted(k for k in {*known, *identity} if known.get(k) != identity.get(k))
        raise StudyError(
            f"search: expected the study in {journal} to have the same {different[0]} ({known.get(different[0])}), got "
            f"{identity.get(different[0])}; choose another run folder, or move the journal away to search anew"
        )
    return study


def fail_killed(study: Any) -> None:
    """Trials that a killed process left running would be taken for running ones, and their region avoided."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        study._storage.set_trial_user_attr(trial._trial_id, KILLED, True)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _drop_torn_line(journal: Path) -> None:
    """A killed writer can leave half a line, on which the next write would break: cut back to the last whole one."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
