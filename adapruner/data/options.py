"""Whether a data module's options make sense, before any text is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from adapruner.argument_checks import check_seed, got
from adapruner.data.sets import CalibrationData, EvaluationSet, ReconstructionData, RecoveryData, SearchData
from adapruner.data.text_source import TextSource
from adapruner.errors import ConfigurationError


def checks_of_sets(
    calibration: CalibrationData,
    search: SearchData,
    recovery: RecoveryData | None,
    evaluation: Sequence[EvaluationSet],
    seed: int,
    reconstruction: ReconstructionData | None = None,
) -> list[Callable[[], object]]:
    """Independent checks of everything about the sets that can be known without reading them; each raises its own error."""
    sizes: list[tuple[str, int | None, int]] = [
        ("calibration.samples_per_source", calibration.samples_per_source, 1),
        ("calibration.seq_len", calibration.seq_len, 2),
        ("calibration.clusters", calibration.clusters, 0),
        *(("calibration.other_seq_lens", length, 2) for length in calibration.other_seq_lens),
        ("search.samples", search.samples, max(1, len(search.sources))),
        ("search.seq_len", search.seq_len, 2),
    ]
    sources = [*calibration.sources, *search.sources, *(item.source for item in evaluation)]
    if recovery is not None:
        sizes += [("recovery.samples", recovery.samples, max(1, len(recovery.sources))), ("recovery.seq_len", recovery.seq_len, 2)]
        sources += recovery.sources
    if reconstruction is not None:
        sizes.append(("reconstruction.samples_per_source", reconstruction.samples_per_source, 1))
        sizes.append(("reconstruction.seq_len", reconstruction.seq_len, 2))
        sources += reconstruction.sources
    for item in evaluation:
        sizes += [(f"evaluation.{item.name}.windows", window, 2) for window in item.windows]
        sizes.append((f"evaluation.{item.name}.limit", item.limit, 1))
    return [
        *(partial(check_size, f"data.{name}", value, least) for name, value, least in sizes),
        partial(check_seed, "data.seed", seed),
        partial(_check_calibration, calibration),
        partial(_check_reconstruction, calibration, reconstruction),
        *_checks_of_names(calibration, search, recovery, evaluation),
        partial(_check_streams, recovery, evaluation),
        *(source.reader.check for source in sources),
    ]


def _checks_of_names(
    calibration: CalibrationData, search: SearchData, recovery: RecoveryData | None, evaluation: Sequence[EvaluationSet]
) -> list[Callable[[], object]]:
    roles: list[tuple[str, list[TextSource]]] = [("search", search.sources)]
    roles += [("calibration", calibration.sources)] if calibration.given_set is None and calibration.sources else []
    roles += [("recovery", recovery.sources)] if recovery is not None else []
    named = [(f"data.{role}.sources", [source.name for source in sources]) for role, sources in roles]
    named += [("data.evaluation", [item.name for item in evaluation])] if evaluation else []
    named += [(f"data.evaluation.{item.name}.windows", [str(window) for window in item.windows]) for item in evaluation]
    return [partial(_check_names, *pair) for pair in named]


def _check_calibration(calibration: CalibrationData) -> None:
    given = calibration.given_set is not None
    if given != (not calibration.sources):
        got = "both" if calibration.sources else "neither"
        raise ConfigurationError(f"data.calibration: expected exactly one of sources and given_set, got {got}; give one")
    if given and calibration.other_seq_lens:
        raise ConfigurationError(
            f"data.calibration.other_seq_lens: expected none with given_set, got {calibration.other_seq_lens}; "
            "its samples are cut: set seq_len"
        )
    if calibration.clusters == 1:
        raise ConfigurationError("data.calibration.clusters: expected 0 or at least 2, got 1; one cluster is the whole pool: give 0")
    if calibration.other_seq_lens:
        lengths = [str(n) for n in (calibration.seq_len, *calibration.other_seq_lens)]
        _check_names("data.calibration.other_seq_lens, with seq_len", lengths)


def _check_reconstruction(calibration: CalibrationData, reconstruction: ReconstructionData | None) -> None:
    if reconstruction is None:
        return
    if reconstruction.sources:
        _check_names("data.reconstruction.sources", [source.name for source in reconstruction.sources])
    elif calibration.given_set is not None:
        raise ConfigurationError(
            f"data.reconstruction.sources: expected sources beside a given calibration set ({calibration.given_set}), got none; name them, "
            "or leave data.reconstruction out"
        )


def _check_streams(recovery: RecoveryData | None, evaluation: Sequence[EvaluationSet]) -> None:
    """A stream may have no end: something must say how much of it to read."""
    unbounded = [("evaluation", item.source) for item in evaluation]
    unbounded += [("recovery", source) for source in (recovery.sources if recovery and recovery.samples is None else [])]
    for role, source in unbounded:
        if source.streaming and source.documents is None:
            remedy = "set documents" if role == "evaluation" else "set documents or recovery.samples"
            raise ConfigurationError(f"data.{role}: expected a limit for the streamed source {source.name!r}, got none; {remedy}")


def check_size(argument: str, value: int | None, least: int, most: int = 2**40) -> None:
    """Refuses what is no whole number of ``least`` or more, or more than anything could hold; ``None`` passes."""
    if value is not None and (type(value) is not int or value < least):
        raise ConfigurationError(f"{argument}: expected a whole number >= {least}, got {got(value)}; correct it")
    if value is not None and value > most:
        raise ConfigurationError(f"{argument}: expected a whole number <= {most}, got {got(value)}; correct it")


def _check_names(argument: str, names: list[str]) -> None:
    if not names or len(set(names)) != len(names):
        got = "none" if not names else ", ".join(names)
        raise ConfigurationError(f"{argument}: expected one or more entries, each once, got {got}; correct the list")
