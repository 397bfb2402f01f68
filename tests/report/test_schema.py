from typing import Any

import pytest

from adapruner.errors import ConfigurationError
from adapruner.report.schema import SECTIONS, validate_report

from .sample import measured_cost, sample_report, searched_calibration


def _set(report: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    place: Any = report
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", KeyError, r"^report: expected the key 'seed', got none; add it"),
        ("model/plan_hash", KeyError, r"^report\.model: expected the key 'plan_hash'"),
        ("search/best_value", KeyError, r"^report\.search: expected the key 'best_value'"),
        ("export/class", KeyError, r"^report\.export: expected the key 'class'"),
        ("perplexity/3/window", KeyError, r"^report\.perplexity\[3\]: expected the key 'window'"),
        ("model/units/ffn/kept", KeyError, r"^report\.model\.units\.ffn: expected the key 'kept'"),
        ("recovery/lora", KeyError, r"^report\.recovery: expected the key 'lora'"),
        ("name", 3, r"^report\.name: expected a valid string, got 3"),
        ("seed", True, r"^report\.seed: expected a valid integer, got True"),
        ("model", [], r"^report\.model: expected an object, got \[\]"),
        ("perplexity", "low", r"^report\.perplexity: expected a valid array, got 'low'"),
        ("perplexity/0/stage", "healed", r"stage: expected 'dense', 'pruned', 'reconstructed' or 'recovered', got 'healed'"),
        ("recovery/lora/history", [[1]], r"history\[0\]: expected the key 1, got none"),
        ("model/pruned_fraction", 40.0, r"pruned_fraction: expected less than 1, got 40\.0"),
        ("model/units/ffn/kept", [1], r"units\.ffn: expected as many kept as dense layers \(8\), got 1"),
        ("model/units/attention/kept", [7] * 8, r"units\.attention: expected every kept count between 0 and the dense count"),
    ],
)
def test_refuses_in_one_line(path: str, value: Any, message: str) -> None:
    report = sample_report()
    _set(report, path, value)
    with pytest.raises(ConfigurationError, match=message) as caught:
        validate_report(report)
    assert "\n" not in str(caught.value)


def test_refuses_two_values_for_one_cell() -> None:
    report = sample_report()
    report["perplexity"].append(dict(report["perplexity"][1], value=1.0))
    with pytest.raises(ConfigurationError, match=r"one value per stage, method, dataset and window, got .*two for \('pruned', 'adapruner'"):
        validate_report(report)


def test_refuses_two_scores_for_one_cell() -> None:
    report = sample_report()
    report["zero_shot"]["rows"].append(dict(report["zero_shot"]["rows"][0], value=1.0))
    with pytest.raises(ConfigurationError, match=r"one value per stage, task and metric, got .*two for \('dense', 'boolq', 'acc'\)"):
        validate_report(report)


def test_a_sweep_is_checked_to_its_last_number() -> None:
    report = {**sample_report(), "cost": measured_cost()}
    validate_report(report)
    report["cost"]["sweep"]["rows"][1]["pruned"]["decode_ms"] = "fast"
    with pytest.raises(
        ConfigurationError, match=r"^report\.cost\.sweep\.rows\[1\]\.pruned\.decode_ms: expected a valid number, got 'fast'"
    ):
        validate_report(report)


@pytest.mark.parametrize("absent", ["missing", "none"])
def test_every_later_section_may_be_absent(absent: str) -> None:
    report = sample_report()
    for section in (*SECTIONS, "protocol"):
        if absent == "missing":
            del report[section]
        else:
            report[section] = None
    assert validate_report(report).to_dict() == report


def test_unknown_keys_are_allowed() -> None:
    report = {**sample_report(), "leaderboard": {"arc_easy": 0.5}}
    assert validate_report(report).to_dict() == report


def test_calibration_may_say_more_and_is_checked_where_it_does() -> None:
    report = {**sample_report(), "calibration": searched_calibration()}
    assert validate_report(report).to_dict() == report
    without = {**sample_report()["calibration"], "clusters": None, "effective_samples": None, "set_file": None, "spread": None}
    assert validate_report({**sample_report(), "calibration": without}).calibration is not None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("calibration/spread/values", [], r"calibration\.spread\.values: expected to have at least 1 item"),
        ("calibration/spread/values", ["low"], r"spread\.values\[0\]: expected a valid number, got 'low'"),
        ("calibration/spread/size", 1.5, r"spread\.size: expected a valid integer, got 1\.5"),
        ("calibration/spread/chosen", KeyError, r"spread: expected the key 'chosen'"),
        ("calibration/clusters/cluster 0", 3, r"clusters\.cluster 0: expected an object, got 3"),
        ("calibration/effective_samples", "many", r"effective_samples: expected a valid number, got 'many'"),
        ("calibration/set_file", 1, r"set_file: expected a valid string, got 1"),
    ],
)
def test_refuses_what_calibration_adds_in_one_line(path: str, value: Any, message: str) -> None:
    report = {**sample_report(), "calibration": searched_calibration()}
    _set(report, path, value)
    with pytest.raises(ConfigurationError, match=message):
        validate_report(report)
