"""The study on disk: Optuna's journal in the run folder, or a storage that several machines share.

Why Optuna's journal is not enough by itself, each with a test:

- a line that a killed writer left half-written spoils the next one: it is cut off (``tests/properties/test_readers.py``; for the
  others ``tests/search/test_journal.py``);
- a damaged last line is taken for one that is being written, and raises an error later: it is refused;
- a changed byte may still be JSON, and the trial is believed: every line carries a digest, and finished trials, which a storage
  has without lines, a hash;
- the lock of a killed writer is waited for half a minute: it is removed, since run folders are locked as a whole;
- trials that a killed process was running count as running for ever, and their region is avoided: they are failed.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from adapruner.errors import AdaPrunerError, ConfigurationError, PlanError, StudyError
from adapruner.files.atomic import writing
from adapruner.files.digests import DamagedError, opened, sealed
from adapruner.pruning.plan import PruningPlan, read_plan

FILE = "study.journal"
PLAN = "plan.json"
KILLED = "killed"
ROUND = "round-"
"""Before the number of a round in the name of its folder."""
FIRST_ROUND = f"{ROUND}1"
#: In a storage of several machines: the host and the run folder that a trial runs in.
OWNER = "owner"
#: Attribute of a finished trial: :func:`seal_of` it.
SEAL = "seal"
_NAME = "adapruner"


def check_journal(folder: Path, identity: dict[str, Any], storage: str | None = None) -> None:
    """Reads the study, if there is one, so that a journal or a storage that cannot be used is refused before heavy work; writes nothing.

    Raises:
        StudyError: if the journal belongs to another study or is damaged, or the storage cannot be reached.
    """
    if storage is not None or (folder / FILE).exists():
        open_study(folder, identity, None, storage)


def check_study(folder: Path, identity: dict[str, Any], rounds: int, storage: str | None = None) -> None:
    """:func:`check_journal` where the first of several rounds has its study, and that there is none of another number of rounds.

    Raises:
        StudyError: as :func:`check_journal`.
        ConfigurationError: if there is.
    """
    first = folder / FIRST_ROUND
    other = first if rounds == 1 else folder
    if (other / FILE).exists():
        raise ConfigurationError(
            f"folder: expected one without a search of {'several rounds' if rounds == 1 else 'one round'}, got {other / FILE}; "
            "choose another run folder, or give pruning.rounds as before"
        )
    if rounds == 1:
        check_journal(folder, identity, storage)
    else:
        check_journal(first, {**identity, "round": [1, rounds]}, storage)


def check_no_other_search(folder: Path, given: PruningPlan | None) -> None:
    """A run that does not search would replace the plan, the report and the model of the search in this folder.

    Args:
        given: the plan that it prunes by; the search's own is welcome.

    Raises:
        ConfigurationError: if there is a study in the folder, and its plan is another.
    """
    study = next((file for file in (folder / FILE, folder / FIRST_ROUND / FILE) if file.exists()), None)
    if study is None:
        return
    try:
        own = read_plan(folder / PLAN).hash
    except PlanError:
        own = None
    if given is None or given.hash != own:
        raise ConfigurationError(
            f"folder: expected one without the study of a search, got {study}, whose plan "
            f"{'is yet to come' if own is None else f'{own} this run would replace'}; choose another run folder"
        )


def open_study(folder: Path | None, identity: dict[str, Any], objectives: int | None, storage: str | None = None) -> Any:
    """The Optuna study of this folder or storage, made if there is none; one rank at a time.

    Args:
        folder: of the run; ``None`` keeps the study in memory.
        identity: what the trials' values depend on.
        objectives: 1 or 2; ``None`` only reads: no study is made, no line is mended.
        storage: URL of a storage that several machines share; ``None``: the journal in the folder.

    Raises:
        StudyError: as :func:`check_journal`.
    """
    optuna = _import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    where = storage.rpartition("@")[2] if storage is not None else str(folder and folder / FILE)  # a password stays out
    try:
        in_memory = storage is None and folder is None
        kept = optuna.storages.InMemoryStorage() if in_memory else _open_storage(folder, storage, objectives is not None)
        if _NAME in optuna.get_all_study_names(kept):
            study = optuna.load_study(study_name=_NAME, storage=kept)  # nothing is written: it may be another search's
        elif objectives is None:
            return None
        else:
            study = optuna.create_study(study_name=_NAME, storage=kept, directions=["minimize"] * objectives, load_if_exists=True)
    except AdaPrunerError:
        raise
    except Exception as error:  # whatever a file or a server holds, the user gets one line
        kind, reason = type(error).__name__, str(error).partition("\n")[0][:200]
        raise StudyError(
            f"search: expected a sound journal in {where}, got damage ({kind}); move it away to search anew"
            if storage is None
            else f"search.storage: expected a storage at {where}, got {kind}: {reason}; correct the URL, or start it"
        ) from error
    _check_seals(study, where)
    _check_identity(study, json.loads(json.dumps(identity)), where, objectives is not None)
    return study


def _import_optuna() -> Any:
    """First imported in a thread of its own. Optuna keeps the errors of packages that it can do without, an error keeps the frames that
    waited for the import, and in those of a run are the model and all its tables: they would stay as long as the process.
    """
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(import_module, "optuna").result()


def seal_of(state: str, params: dict[str, Any], told: Any, plan_hash: str) -> str:
    """8 hex digits over a trial's outcome; ``told`` is its value, its list of values, or ``None``."""
    values = [] if told is None else [float(v) for v in (told if isinstance(told, list) else [told])]
    return hashlib.sha256(json.dumps([state, params, values, plan_hash], sort_keys=True).encode()).hexdigest()[:8]


def fail_killed(study: Any, owner: str = "") -> None:
    """Fails the trials that a killed process left running.

    Args:
        owner: whose trials; in a folder's own journal nobody else's can be running.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        if not owner or trial.user_attrs.get(OWNER) == owner:
            study._storage.set_trial_user_attr(trial._trial_id, KILLED, True)
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _open_storage(folder: Path | None, url: str | None, write: bool) -> Any:
    import optuna

    if url is None:
        assert folder is not None
        _mend(folder / FILE, write)
        return optuna.storages.JournalStorage(_sealed_backend(folder / FILE))
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


def _sealed_backend(file: Path) -> Any:
    """Optuna's journal in a file, each line with its digest; what cannot be written is one line for the user."""
    from optuna.storages.journal import JournalFileBackend

    class SealedJournal(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with writing(file):
                super().append_logs([sealed(log) for log in logs])

        def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
            for number, line in enumerate(super().read_logs(log_number_from), start=log_number_from + 1):
                try:
                    yield opened(line)
                except DamagedError as error:
                    raise StudyError(
                        f"search: expected a sound journal in {file}, got damage in line {number} ({error}); move it away to search anew"
                    ) from None

    with writing(file):  # it makes the file
        return SealedJournal(str(file))


def read_lines(file: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """The lines of a journal, without Optuna, that are sound; how many are damaged; and whether lines carry digests, as all of ours do.

    The end of a line that was being written is neither.

    Raises:
        OSError: if it cannot be read.
    """
    whole = file.read_bytes().splitlines(keepends=True)
    ours, found, damaged = any(b'"digest"' in line for line in whole), [], 0
    for line in whole:
        try:
            found.append(opened(json.loads(line), may_lack=not ours))
        except ValueError:
            damaged += line.endswith(b"\n")
    return found, damaged, ours


def _mend(journal: Path, write: bool) -> None:
    """Removes what a killed writer left behind, its lock and half a line; without ``write`` only looks, which neither of them disturbs.

    Raises:
        StudyError: if the last whole line is no JSON. (Optuna itself finds the others.)
    """
    if write:
        with writing(journal):
            journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if write and whole != content:
        with journal.open("rb+") as file:
            file.truncate(len(whole))
    try:
        json.loads(whole.rstrip(b"\n").rpartition(b"\n")[2] or b"null")
    except ValueError:
        raise StudyError(
            f"search: expected a sound journal in {journal}, got damage in its last line; move it away to search anew"
        ) from None


def _check_seals(study: Any, where: str) -> None:
    for trial in study.get_trials(deepcopy=False):
        known = trial.user_attrs.get(SEAL)
        if not trial.state.is_finished() or KILLED in trial.user_attrs or known is None:
            continue
        told = trial.values if trial.state.name == "COMPLETE" else None  # of a stopped trial Optuna gives the last part's
        if known != seal_of(trial.state.name, trial.params, told, trial.user_attrs.get("plan_hash", "")):
            raise StudyError(
                f"search: expected a sound journal in {where}, got damage (trial {trial.number} was changed); move it away to search anew"
            )


def _check_identity(study: Any, identity: dict[str, Any], where: str, write: bool) -> None:
    known = study.user_attrs.get("identity")
    if known is None:
        if write:
            study.set_user_attr("identity", identity)
        return
    different = sorted(k for k in {*known, *identity} if known.get(k) != identity.get(k))
    if different:
        name = "model" if "model" in different else different[0]  # of another model, everything else may differ too
        more = f", and another {', '.join(k for k in different if k != name)}" if len(different) > 1 else ""
        raise StudyError(
            f"search: expected the study in {where} to have the same {name} ({_short(known.get(name), identity.get(name))}), got "
            f"{_short(identity.get(name), known.get(name))}{more}; choose another run folder, or move the journal away to search anew"
        )


def _short(value: Any, other: Any) -> str:
    """A value; of an object only what differs from the other."""
    if not isinstance(value, dict) or not isinstance(other, dict):
        return str(value)
    return ", ".join(f"{key} {value.get(key)}" for key in sorted({*value, *other}) if value.get(key) != other.get(key))
