from __future__ import annotations

import torch

from adapruner.recovery.rotation import best_rotation, rotation_change


def test_no_other_orthogonal_matrix_is_better() -> None:
    generator = torch.Generator().manual_seed(0)
    for channels in (3, 6, 10):  # fewer than outputs, as many, more
        kept = torch.randn(6, channels, generator=generator)
        inputs, targets = torch.randn(40, channels, generator=generator), torch.randn(40, 6, generator=generator)
        residual = (targets - inputs @ kept.T).T @ inputs
        turned = kept + rotation_change(inputs.T @ inputs, residual, kept)
        torch.testing.assert_close(turned.T @ turned, kept.T @ kept, rtol=1e-4, atol=1e-4)  # lengths and angles stay
        rotation = best_rotation((targets.T @ inputs) @ kept.T)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(6, dtype=torch.float64))
        torch.testing.assert_close(turned.double(), rotation @ kept.double(), rtol=1e-4, atol=1e-4)

        def error(weight: torch.Tensor, inputs: torch.Tensor = inputs, targets: torch.Tensor = targets) -> float:
            return float((inputs @ weight.float().T - targets).square().sum())

        best = error(turned)
        assert best < error(kept)
        for scale in (0.01, 0.1, 1.0, 10.0):
            for _ in range(25):
                spin = torch.randn(6, 6, generator=generator, dtype=torch.float64)
                near = torch.matrix_exp(scale * (spin - spin.T)) @ rotation
                assert error(near @ kept.double()) >= best * (1 - 1e-5)
        for flip in range(6):  # reflections too
            sign = torch.ones(6, dtype=torch.float64)
            sign[flip] = -1
            assert error((rotation * sign) @ kept.double()) >= best * (1 - 1e-5)


def test_a_rotation_is_found_again() -> None:
    generator = torch.Generator().manual_seed(1)
    spin = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    true = torch.matrix_exp(spin - spin.T)
    kept, inputs = torch.randn(5, 9, generator=generator), torch.randn(50, 9, generator=generator)
    targets = inputs @ (true.float() @ kept).T
    change = rotation_change(inputs.T @ inputs, (targets - inputs @ kept.T).T @ inputs, kept)
    torch.testing.assert_close(kept + change, true.float() @ kept, rtol=1e-4, atol=1e-4)
