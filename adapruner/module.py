"""The LightningModule around the language model: loads it, trains it, carries its pruning plan in every checkpoint."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from adapruner.argument_checks import typed_as
from adapruner.errors import ConfigurationError
from adapruner.evaluation.generation import Decoding, stream_text
from adapruner.evaluation.perplexity import NLLResult
from adapruner.export.loading import ExportedModel, open_export
from adapruner.importance.finiteness import check_weights
from adapruner.models.loading import check_dtype, load_language_model, load_tokenizer, model_source
from adapruner.models.model_names import DEMO
from adapruner.models.rotary import restore_rotary
from adapruner.models.units import ModelStructure
from adapruner.pruned_module import PrunedCheckpoints
from adapruner.pruning.before_pruning import trace_for_plan
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import prune_model
from adapruner.recovery.checkpoint_contents import PLAN_KEY, fit_to_checkpoint
from adapruner.recovery.distillation import Distillation, training_loss
from adapruner.recovery.sharding import FlatlyShardedModel, ShardedModel, token_share


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)


class TextListener(Protocol):
    """Is told what a model writes."""

    def begin(self, prompt: str) -> None:
        """A prompt is about to be continued."""

    def write(self, piece: str) -> None:
        """The next characters."""

    def end(self) -> None:
        """The continuation is whole."""


class PrunableCausalLM(PrunedCheckpoints, LightningModule):
    """Any decoder-only Hugging Face causal language model, ready to be pruned and recovered.

    Args:
        name_or_path: hub name or local folder; ``demo`` is the small model that comes with adapruner. A folder that adapruner exported
            is loaded as :func:`adapruner.load` does, without running code from it.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ...; the library's choice when empty.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run modelling code that comes with the model. Off: such a model is refused.
        optimizer: called with the trainable parameters (adapters only, during LoRA recovery).
        scheduler: called with the optimizer; stepped after every optimizer step.
        warmup_steps: optimizer steps of linear warm-up; the scheduler begins after them.
        gradient_checkpointing: trade compute for activation memory while training.
        generation: how ``predict`` continues its prompts.

    The model is loaded in :meth:`configure_model`, which callbacks may call early; it is idempotent.

    >>> module = PrunableCausalLM("demo", dtype="float32")
    >>> module.configure_model()
    >>> module.model.config.model_type
    'llama'
    """

    @typed_as("model.")
    def __init__(
        self,
        name_or_path: str = DEMO,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        optimizer: OptimizerCallable = _adamw,
        scheduler: LRSchedulerCallable | None = None,
        warmup_steps: int = 0,
        gradient_checkpointing: bool = False,
        generation: Decoding = Decoding(),
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        if warmup_steps < 0:
            raise ConfigurationError(f"model.warmup_steps: expected 0 or more, got {warmup_steps}; give 0 for no warm-up")
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "generation"])
        self.name_or_path, self.dtype_name, self.attn_implementation = name_or_path, dtype, attn_implementation
        self.revision, self.trust_remote_code = revision, trust_remote_code
        self.optimizer, self.scheduler, self.warmup_steps = optimizer, scheduler, warmup_steps
        self.gradient_checkpointing, self.generation = gradient_checkpointing, generation
        self.model: Any = None
        self.structure: ModelStructure | None = None
        self.plan: PruningPlan | None = None
        self.exported: ExportedModel | None = None
        """Set where ``name_or_path`` is an export: what was pruned before."""
        self.distillation: Distillation | None = None
        """Set by a recovery that distils, for the time of its training."""
        self.measured: dict[int, NLLResult] = {}
        """Loader -> result of the last ``validate`` or ``test``, over all processes."""
        self.listener: TextListener | None = None
        """Is told what ``predict`` writes, as it comes."""
        self._perplexity: dict[int, Any] = {}  # by loader; not a submodule: what it sums is in no checkpoint
        self._tokenizer: Any = None
        self._sharded: ShardedModel | FlatlyShardedModel | None = None

    @property
    def source(self) -> str:
        """Where the model comes from: the embedded folder for ``demo``, else the name as given."""
        return model_source(self.name_or_path)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded on first use.

        Raises:
            ModelError: if it cannot be loaded.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name_or_path, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return self._tokenizer

    def configure_model(self) -> None:
        """Loads the model, once: the dense one, or an export.

        Raises:
            ModelError: if the folder or hub name cannot be loaded.
        """
        if self.model is not None:
            return
        self.exported = open_export(self.source, self.dtype_name, self.attn_implementation)
        if self.exported is not None:
            self.model = self.exported.model
        else:
            self.model = load_language_model(
                self.name_or_path,
                dtype=self.dtype_name,
                attn_implementation=self.attn_implementation,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
            )
        self.model.train()  # it loads in evaluation mode
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()

    def setup(self, stage: str) -> None:
        """Under FSDP2 (``ModelParallelStrategy``) shards the model: callbacks, and so the surgery, come before this hook.

        Under FSDP1 (``fsdp``) the strategy wraps the module behind it; it is told which layers to make units of, and to leave dtypes.
        """
        if stage != "fit" or self._sharded is not None:
            return
        if self.device_mesh is not None:
            self.configure_model()
            self._sharded = ShardedModel(self.model, self.device_mesh["data_parallel"])
        elif isinstance(self.trainer.strategy, FSDPStrategy):
            self.configure_model()
            self._sharded = FlatlyShardedModel(self.model)
            strategy = self.trainer.strategy
            strategy.kwargs.setdefault("auto_wrap_policy", self._sharded.policy)
            strategy.mixed_precision = strategy.mixed_precision or self._sharded.as_it_is()
            if strategy.precision_plugin.precision == "32-true":  # the Trainer's default: elsewhere it leaves a bfloat16 model alone
                setattr(strategy.precision_plugin, "convert_module", lambda module: module)  # noqa: B010

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: int | float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's, and by norm under FSDP1 too, where each rank holds a part of every gradient."""
        root = getattr(self.trainer.strategy, "model", None)
        if isinstance(self._sharded, FlatlyShardedModel) and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            root.clip_grad_norm_(float(gradient_clip_val))  # type: ignore[union-attr]
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_end(self) -> None:
        """A sharded model becomes whole again, on every rank, for whoever merges, measures and exports it."""
        self.make_whole()

    def make_whole(self) -> None:
        """Makes a sharded model whole, also where nothing was left to train, which has no end of training; once is enough."""
        if isinstance(self._sharded, FlatlyShardedModel):
            self.model, self._sharded = self._sharded.whole(self.trainer.strategy.model), None  # type: ignore[arg-type]
        elif self._sharded is not None:
            self.model, self._sharded = self._sharded.whole(), None

    def apply_plan(self, plan: PruningPlan) -> None:
        """Prunes the dense model by a plan, in place, and remembers the plan."""
        self.configure_model()
        if self.structure is None:
            self.structure = trace_for_plan(self.model, plan)
        prune_model(self.model, self.structure, plan)
        self.plan = plan

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits ``[batch, seq_len, vocabulary]`` of ``input_ids [batch, seq_len]``."""
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean NLL per counted token of the batch, or what distillation makes of it; labels of -100 (padding, prompts) do not count.

        Of several ranks each weighs by its tokens, so that they train together what one would with their batches joined.
        """
        loss = training_loss(self.model, self.distillation, batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss * token_share(batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``val_nll`` (nats per token, weighted by tokens)."""
        self._log_nll(batch, "val_nll", dataloader_idx)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``test_nll`` per evaluation set."""
        self._log_nll(batch, "test_nll", dataloader_idx)

    def _log_nll(self, batch: dict[str, Tensor], name: str, loader: int) -> None:
        metric = self._perplexity.get(loader)
        if metric is None:
            from adapruner.evaluation.perplexity_metric import CausalPerplexity  # importing torchmetrics is slow

            metric = self._perplexity[loader] = CausalPerplexity().to(self.device)
        metric.update(self(batch["input_ids"], batch.get("attention_mask")), batch["labels"])
        total, tokens = metric.last
        self.log(name, (total / max(1, tokens)).float(), batch_size=max(1, tokens), prog_bar=True, sync_dist=True)

    def on_validation_start(self) -> None:
        """Refuses weights that are no numbers, also a checkpoint's; inside ``fit`` the loss tells of them.

        Frequencies that the Trainer's precision rounded are exact again.

        Raises:
            ModelError: naming the first.
        """
        restore_rotary(self)
        if self.trainer.state.fn != "fit":
            check_weights(self.model)

    def on_test_start(self) -> None:
        """As :meth:`on_validation_start`."""
        self.on_validation_start()

    def on_predict_start(self) -> None:
        """As :meth:`on_validation_start`."""
        self.on_validation_start()

    def on_validation_epoch_start(self) -> None:
        """Starts the sums over."""
        self._perplexity = {}

    def on_validation_epoch_end(self) -> None:
        """Fills :attr:`measured`: sums in float64 where logged means are of single precision."""
        self.measured = {loader: metric.result() for loader, metric in self._perplexity.items()}

    def on_test_epoch_start(self) -> None:
        """Starts the sums over, as before a validation."""
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        """Fills :attr:`measured`, as after a validation."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: list[str], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, str]]:
        """Continues every prompt of the batch, as :attr:`generation` says; :attr:`listener` hears it token by token."""
        return [{"prompt": prompt, "continuation": self._continuation(prompt)} for prompt in batch]

    def _continuation(self, prompt: str) -> str:
        listener, pieces = self.listener, []
        if listener is not None:
            listener.begin(prompt)
        for piece in stream_text(self.model, self.tokenizer, prompt, self.generation):
            pieces.append(piece)
            if listener is not None:
                listener.write(piece)
        if listener is not None:
            listener.end()
        return "".join(pieces)

    def configure_optimizers(self) -> Any:
        """The optimizer over everything that requires a gradient now, with warm-up and the scheduler."""
        optimizer, scheduler = self.build_optimizer([p for p in self.parameters() if p.requires_grad])
        return optimizer if scheduler is None else ([optimizer], [{"scheduler": scheduler, "interval": "step"}])

    def build_optimizer(self, parameters: list[Any]) -> tuple[Any, Any]:
        """Optimizer and scheduler (or ``None``) for some parameters, as configured; the scheduler is stepped with the optimizer."""
        optimizer = self.optimizer(parameters)
        scheduler: Any = None if self.scheduler is None else self.scheduler(optimizer)
        if self.warmup_steps:
            schedulers = torch.optim.lr_scheduler
            warm: Any = schedulers.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.warmup_steps))
            scheduler = warm if scheduler is None else schedulers.SequentialLR(optimizer, [warm, scheduler], [self.warmup_steps])
        return optimizer, scheduler

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Prunes the model by the checkpoint's plan, unless it is pruned by it, and attaches its adapters, so that the weights fit.

        An export counts as pruned by its own plan, and as the model to be pruned by any other.

        Raises:
            ModelError: if the model was pruned by another plan already.
            PlanError: if the checkpoint's plan is for another model.
        """
        self.configure_model()
        own = None if self.exported is None else self.exported.plan
        if self.plan is None and own is not None and own.hash == checkpoint.get(PLAN_KEY, own.to_dict()).get("hash"):
            self.model, _ = fit_to_checkpoint(self.model, checkpoint, own)  # pruned before: no plan of this module's
        else:
            super().on_load_checkpoint(checkpoint)
