"""The study on disk: opened, checked for belonging to this search, mended after a kill."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from adapruner.errors import StudyError

FILE = "study.journal"
KILLED = "killed"
#: In a storage of several machines: the host and the run folder that a trial runs in.
OWNER = "owner"
#: Attribute of a finished trial: hash over what it says, since a journal has no checksums of its own.
SEAL = "seal"
_NAME = "adapruner"


def check_journal(folder: Path, identity: dict[str, Any], storage: str | None = None) -> None:
    """Opens the study, if there is one, so that a journal or a storage that cannot be used is refused before heavy work.

    Raises:
        StudyError: if the journal belongs to another study or is damaged, or the storage cannot be reached.
    """
    if storage is None:
        _mend(folder / FILE)
        if not (folder / FILE).exists():
            return
        _check_lines(folder / FILE)
    open_study(folder, identity, None, storage)


def open_study(folder: Path | None, identity: dict[str, Any], objectives: int | None, storage: str | None = None) -> Any:
    """The Optuna study of this folder or storage, made if there is none; one rank at a time.

    Args:
        identity: what the trials' values depend on.
        objectives: 1 or 2, or ``None`` for as many as the study has; ``None`` makes none.
        storage: URL of a storage that several machines share; ``None``: the journal in the folder.

    Raises:
        StudyError: as :func:`check_journal`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    identity = json.loads(json.dumps(identity))
    local = "memory" if folder is None else str(folder / FILE)
    where = local if storage is None else storage.rpartition("@")[2]  # a password stays out
    try:
        if storage is not None:
            opened = _open_storage(storage)
        else:
            opened = optuna.storages.InMemoryStorage() if folder is None else _open_journal(folder / FILE)
        if objectives is None and _NAME not in optuna.get_all_study_names(opened):
            return None
        if objectives is None:
            study = optuna.load_study(study_name=_NAME, storage=opened)
        else:
            directions = ["minimize"] * objectives
            study = optuna.create_study(study_name=_NAME, storage=opened, directions=directions, load_if_exists=True)
    except StudyError:
        raise
    except Exception as error:  # it is read here; whatever it holds, the user gets one line
        if storage is not None:
            reason = str(error).splitlines()[0][:200]
            raise StudyError(
                f"search.storage: expected a storage at {where}, got {type(error).__name__}: {reason}; correct the URL, or start it"
            ) from error
        raise StudyError(
            f"search: expected a sound journal in {where}, got damage ({type(error).__name__}); move it away to search anew"
        ) from error
    _check_seals(study, where)
    _check_identity(study, identity, where)
    return study


def seal_of(state: str, params: dict[str, Any], told: Any, plan_hash: str) -> str:
    """8 hex digits over a trial's outcome; ``told`` is its value, its list of values, or ``None``."""
    values = [] if told is None else [float(v) for v in (told if isinstance(told, list) else [told])]
    return hashlib.sha256(json.dumps([state, params, values, plan_hash], sort_keys=True).encode()).hexdigest()[:8]


def _check_seals(study: Any, where: str) -> None:
    """A byte that changed on disk may still be JSON: such a trial would be taken for what it is not."""
    for trial in study.get_trials(deepcopy=False):
        known = trial.user_attrs.get(SEAL)
        if not trial.state.is_finished() or KILLED in trial.user_attrs or known is None:
            continue
        told = trial.values if trial.state.name == "COMPLETE" else None  # of a stopped trial Optuna gives the last part's
        if known != seal_of(trial.state.name, trial.params, told, trial.user_attrs.get("plan_hash", "")):
            raise StudyError(
                f"search: expected a sound journal in {where}, got damage (trial {trial.number} was changed); move it away to search anew"
            )


def _check_lines(journal: Path) -> None:
    """Optuna takes a damaged last line for one that is being written, and stumbles once the next follows."""
    for number, line in enumerate(journal.read_bytes().splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError:
            raise StudyError(
                f"search: expected a sound journal in {journal}, got damage in line {number}; move it away to search anew"
            ) from None


def _check_identity(study: Any, identity: dict[str, Any], where: str) -> None:
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", identity)
        return
    ours, theirs = ({"world size": 1, **found} for found in (identity, known))  # a study of one process need not say so
    different = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
    if different:
        name = "model" if "model" in different else different[0]  # of another model, everything else may differ too
        more = f", and another {', '.join(k for k in different if k != name)}" if len(different) > 1 else ""
        raise StudyError(
            f"search: expected the study in {where} to have the same {name} ({_short(theirs.get(name), ours.get(name))}), got "
            f"{_short(ours.get(name), theirs.get(name))}{more}; choose another run folder, or move the journal away to search anew"
        )


def _short(value: Any, other: Any) -> str:
    """A value; of an object only what differs from the other."""
    if not isinstance(value, dict) or not isinstance(other, dict):
        return str(value)
    return ", ".join(f"{key} {value.get(key)}" for key in sorted({*value, *other}) if value.get(key) != other.get(key))


def _open_journal(journal: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    _mend(journal)
    return JournalStorage(JournalFileBackend(str(journal)))


def _open_storage(url: str) -> Any:
    import optuna

    if not url.startswith("grpc://"):
        return optuna.storages.RDBStorage(url)
    try:
        import grpc  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        raise StudyError(f"search.storage: expected the package grpcio for {url}, got none; pip install grpcio protobuf") from None
    host, _, port = url.removeprefix("grpc://").rpartition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    proxy.wait_server_ready(timeout=30)
    return proxy


def fail_killed(study: Any, owner: str = "") -> None:
    """Trials that a killed process left running would be taken for running ones, and their region avoided.

    Args:
        owner: whose trials; in a folder's own journal nobody else's can be running.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        if owner and trial.user_attrs.get(OWNER) != owner:
            continue
        study._storage.set_trial_user_attr(trial._trial_id, KILLED, True)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _mend(journal: Path) -> None:
    """A killed writer can leave half a line, on which the next write would break, or its lock, which would hold up the next one.

    Cut back to the last whole line; of nothing but the beginning of a first one there is nothing to keep.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)  # only the first rank writes
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
    if journal.stat().st_size == 0:
        journal.unlink()
