from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapruner.data.resumable import ResumableLoader, training_loader
from adapruner.errors import ConfigurationError


class Killed(BaseException):
    """As a signal would: nothing catches it."""


class Numbered:
    """Sample ``i`` is its number and a random vector."""

    def __init__(self, samples: int) -> None:
        self.vectors = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.vectors[index]


def loader(samples: int, batch_size: int, ranks: int = 1, rank: int = 0, workers: int = 0, seed: int = 3) -> ResumableLoader[Any]:
    return training_loader(Numbered(samples), batch_size, seed, ranks=ranks, rank=rank, num_workers=workers)


def numbers(batches: Any) -> list[list[int]]:
    return [batch[0].tolist() for batch in batches]


def test_one_process_reads_in_the_order_of_a_shuffling_loader() -> None:
    plain = DataLoader(Numbered(11), 4, shuffle=True, generator=torch.Generator().manual_seed(3))  # type: ignore[var-annotated,arg-type]
    assert numbers(loader(11, 4)) == numbers(plain)


def test_every_epoch_has_its_own_order_named_or_not() -> None:
    one, other = loader(11, 4), loader(11, 4)
    unnamed = [numbers(one) for _ in range(3)]
    named = []
    for epoch in range(3):
        other.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        named.append(numbers(other))
    assert unnamed == named
    assert len({str(order) for order in unnamed}) == 3
    state = torch.get_rng_state()
    list(one)
    assert torch.equal(torch.get_rng_state(), state)  # dropout does not depend on who reads


@pytest.mark.parametrize(("samples", "size"), list(itertools.product(range(1, 14), (1, 2, 3))))
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_see_together_what_one_rank_sees(samples: int, size: int, ranks: int) -> None:
    whole = numbers(loader(samples, size * ranks))
    shared = [numbers(loader(samples, size, ranks, rank)) for rank in range(ranks)]
    assert [len(batches) for batches in shared] == [len(whole)] * ranks  # else the others would wait for ever
    for step, batch in enumerate(whole):
        seen = sorted(number for batches in shared for number in batches[step])
        spare = max(0, ranks - len(batch)) if step == len(whole) - 1 else 0
        assert len(seen) == len(batch) + spare
        if not spare:
            assert seen == sorted(batch)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])  # processes are started
def test_it_goes_on_with_the_next_batch(workers: int) -> None:
    whole = loader(11, 4)
    epochs = [numbers(whole) for _ in range(2)]
    for served in range(4):
        first = loader(11, 4, workers=workers)
        list(first)
        begun = numbers(itertools.islice(iter(first), served))
        again = loader(11, 4, workers=workers)
        again.load_state_dict(first.state_dict())
        assert again.state_dict()["epoch"] == (1 if served < 3 else 2)
        rest = iter(again)  # made before the epoch is named, as Lightning does
        again.sampler.set_epoch(1 if served < 3 else 2)  # type: ignore[attr-defined]
        going_on = numbers(rest)
        assert begun + going_on == epochs[1] if served < 3 else begun == epochs[1] and sorted(itertools.chain(*going_on)) == list(range(11))


def test_another_number_of_ranks_goes_on_where_the_others_were() -> None:
    first = loader(12, 2, ranks=2)
    list(itertools.islice(iter(first), 1))
    alone = loader(12, 4)
    alone.load_state_dict(first.state_dict())
    assert numbers(alone) == numbers(loader(12, 4))[1:]


def test_a_state_that_does_not_fit_is_refused() -> None:
    first = loader(12, 2)
    list(itertools.islice(iter(first), 3))
    with pytest.raises(ConfigurationError, match=r"data.recovery: expected the 12 samples that the checkpoint was trained on, got 11"):
        loader(11, 2).load_state_dict(first.state_dict())
    with pytest.raises(ConfigurationError, match=r"data.batch_size: expected batches that divide the 6 samples seen .* got 4"):
        loader(12, 2, ranks=2).load_state_dict(first.state_dict())


class Small(LightningModule):
    """Three layers with dropout between them."""

    def __init__(self, size: int, workers: int = 0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))
        self.size, self.workers, self.seen = size, workers, []  # type: ignore[var-annotated]

    def train_dataloader(self) -> Any:
        return loader(11, self.size, workers=self.workers)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch[0].tolist())
        loss: Tensor = self.net(batch[1]).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def train_plainly(net: nn.Module, epochs: int, folder: Path, kill: int | None = None) -> list[list[int]]:
    """A loop of one's own, which keeps everything after each step, goes on from there, and names no epoch; the numbers it saw."""
    batches: Any = loader(11, 4)
    optimizer, file = torch.optim.AdamW(net.parameters(), lr=0.05), folder / "state.pt"
    parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "batches": batches}
    torch.manual_seed(7)
    step, seen = 0, []
    if file.exists():
        state = torch.load(file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        step = state["step"]
    while step < 3 * epochs:
        for batch in batches:
            if step == kill:
                raise Killed("killed")
            seen.append(batch[0].tolist())
            optimizer.zero_grad()
            net(batch[1]).square().mean().backward()
            optimizer.step()
            step += 1
            torch.save({**{n: p.state_dict() for n, p in parts.items()}, "random": torch.get_rng_state(), "step": step}, file)
    return seen


@pytest.mark.parametrize("kill", range(1, 9))
def test_a_plain_loop_killed_anywhere_and_resumed_is_bit_equal(tmp_path: Path, kill: int) -> None:
    whole, again = Small(4).net, Small(4).net
    (tmp_path / "whole").mkdir()
    seen = train_plainly(whole, 3, tmp_path / "whole")
    with pytest.raises(Killed, match="killed"):
        train_plainly(Small(4).net, 3, tmp_path, kill)
    assert train_plainly(again, 3, tmp_path) == seen[kill:]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


class KillAt(Callback):
    """Ends the run when a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed("killed")


class Randomness(Callback):
    """Dropout goes on, too: the command line's own checkpoint keeps this."""

    def __init__(self) -> None:
        self.state: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"random": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict["random"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(7) if self.state is None else torch.set_rng_state(self.state)


def train(folder: Path, module: Small, kill: int | None = None, resume: int | None = None, **options: Any) -> None:
    extra: list[Any] = [] if kill is None else [KillAt(kill), ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)]
    defaults: dict[str, Any] = {"max_steps": 8, "max_epochs": -1}
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=kill is not None,
        callbacks=[Randomness(), *extra],
        **{**defaults, **options},
    )
    trainer.fit(module, ckpt_path=None if resume is None else folder / f"step={resume}.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_steps": -1, "max_epochs": 3}, {"limit_train_batches": 2}, {"accumulate_grad_batches": 2, "max_steps": 5}],
    ids=["steps", "epochs", "part of an epoch", "accumulation"],
)
def test_a_run_killed_anywhere_and_resumed_is_bit_equal(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = Small(4)
    train(tmp_path, whole, **options)
    if not options:
        assert sorted(itertools.chain(*whole.seen[:3])) == list(range(11))  # every sample once an epoch
    last = 5 if "accumulate_grad_batches" in options else 8
    killed = Small(4)
    with pytest.raises(Killed, match="killed"):
        train(tmp_path, killed, kill=last - 1, **options)
    assert killed.seen == whole.seen[: len(killed.seen)]
    for step in range(1, last - 1):
        again = Small(4)
        train(tmp_path, again, resume=step, **options)
        assert again.seen == whole.seen[len(whole.seen) - len(again.seen) :], step
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (step, name)
