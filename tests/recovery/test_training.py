"""What may be given as a recovery."""

from __future__ import annotations

from adapruner.recovery.training import RecoveryConfig, recovery_config


def test_no_steps_are_no_recovery() -> None:
    assert recovery_config(0) is None
    assert recovery_config(None) is None
    assert recovery_config(3) == RecoveryConfig(steps=3)
