"""Everything that ends a run before it works: what is wrong, and what the user is told.

Each row starts from the good inputs of :func:`tests.spoilt.make_workspace` and spoils one thing. ``tests/cli/test_bad_input.py`` runs
them, ``tests/write_errors_page.py`` makes ``docs/errors.md`` of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.spoilt import (
    adapter_folder,
    chat_template,
    config,
    content,
    cut,
    empty_folder,
    file_in_place_of_the_run_folder,
    foreign_export_folder,
    foreign_journal,
    foreign_plan,
    gone,
    json_field,
    larger_vocabulary,
    no_tokenizer,
    other_tokenizer,
    overflowing,
    overflowing_in_float16,
    plan_of_other_weights,
    shard_index,
    sharded_checkpoint_that_runs_code,
    state_space_model,
    tensors,
    text,
    too_large_for_float16,
    with_nan,
    without_a_tensor,
)


@dataclass(frozen=True)
class BadInput:
    """One thing that is wrong."""

    name: str
    """In the page, and in the test's name."""
    message: str
    """Regular expression that the one line on stderr matches."""
    arguments: tuple[str, ...] = ()
    """Behind ``adapruner fit --config base.yaml``; for another command, all of them."""
    spoil: Callable[[Path], None] | None = None
    """What is done to the good files first."""
    command: str = "fit"


_ONE_SOURCE = "[{name: books, path: texts/rows.jsonl}]"
_CHAT = "[{name: books, path: texts/rows.jsonl, chat: true}]"
_CONVERSATION = (
    '{"messages": [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}, {"role": "assistant", "content": "w3"}]}'
)
_PLAN = ("--pruning.plan=plan.json",)
_EVALUATED = ("--config=base.yaml", "--data.prompts=texts/test.txt")
_EXPORT = "export"
_COMPARE = "compare"

#: Options of a section, what stands in their place, and its text: a group of every kind, at every depth.
SECTIONS = (
    ("pruning", "null", "null"),
    ("pruning", "a list", "[1, 2]"),
    ("model", "a list", "[]"),
    ("trainer", "a number", "3"),
    ("data", "null", "null"),
    ("report", "a list", "[1]"),
    ("export", "a number", "3"),
    ("recovery", "a number", "3"),
    ("pruning.budget", "null", "null"),
    ("pruning.search.space", "a list", "[1]"),
    ("recovery.lora", "a number", "1"),
    ("data.calibration", "null", "null"),
    ("model.generation", "null", "null"),
)
SEEDS = (
    ("a seed below 0", "pruning.search.seed", "search.seed", -1),
    ("a seed of the search above 64 bits", "pruning.search.seed", "search.seed", 2**64),
    ("a seed of recovery above 64 bits", "recovery.seed", "recovery.seed", 2**70),
    ("a seed of the data above 64 bits", "data.seed", "data.seed", 2**70),
    ("a seed of everything below 0", "seed_everything", "seed_everything", -1),
    ("a seed of what is written below 0", "model.generation.seed", "generation.seed", -1),
)
#: What is wrong, the line, the short options, what is done to the good files first.
SHORT_OPTIONS: tuple[tuple[str, str, tuple[str, ...], Callable[[Path], None] | None], ...] = (
    ("more than can go of any model", r"^fraction: expected less than 0\.95, since 5% .*, got 0\.95; give ", ("--fraction", "0.95"), None),
    (
        "more than can go of this model",
        r"^fraction: expected at most 0\.8750 of block parameters for this model, got 0\.9; give 0\.8750 or less$",
        ("--fraction", "0.9"),
        None,
    ),
    (
        "a fraction under the name that fit has for it",
        r"^budget\.pruned_fraction: .* got 0\.9; give 0\.8750 or less, or lower budget\.keep_at_least$",
        ("--pruning.budget.pruned_fraction", "0.9"),
        None,
    ),
    ("an unknown dtype", r"^dtype: expected .*, got 'float8'; ", ("--dtype", "float8"), None),
    ("a file in the place of the run folder", r"^out: expected a folder, got a file, base\.yaml,", ("--out", "base.yaml"), None),
    (
        "an empty folder of texts",
        r"^texts: expected a folder with files of \.txt, .*; put text there$",
        ("--texts", "empty"),
        empty_folder("empty"),
    ),
    (
        "a column of texts that have none",
        r"^texts: expected files with columns for column 'body', got '\w+\.txt'",
        ("--column", "body"),
        None,
    ),
    (
        "too little text",
        r"^texts, calibration, source 'few\.txt', part \[0, 0\.3\): .*; this part gets 30 % of them\)$",
        ("--texts", "few.txt"),
        text("few.txt", "w1 w2"),
    ),
)
ALIASES = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def nested(section: str, value: str) -> str:
    """``pruning: {budget: null}`` of ``pruning.budget`` and ``null``."""
    first, _, rest = section.partition(".")
    return f"{first}: {{{nested(rest, value)}}}" if rest else f"{first}: {value}"


ROWS: dict[str, tuple[BadInput, ...]] = {
    "The command line and the configuration": (
        BadInput("an unknown option", r"pruning\.search\.n_trails: .* did you mean pruning\.search\.n_trials\?", ("--pruning.search.n_trails=3",)),
        BadInput("an option without its sections", r"n_trials: .* did you mean pruning\.search\.n_trials\?", ("--n_trials=3",)),
        BadInput(
            "two unknown options",
            r"2 things to mend: \(1\) recovery\.lora\.rank: .* \(2\) trainer\.max_step: .*trainer\.max_steps\?",
            ("--recovery.lora.rank=3", "--trainer.max_step=4"),
        ),
        BadInput("an unknown option in a file", r"pruning\.search\.n_trails: .* did you mean pruning\.search\.n_trials", spoil=config("n_trials", "n_trails")),
        BadInput("an unknown section in a file", r"prunning: .* did you mean pruning\?", spoil=config("pruning:", "prunning:")),
        BadInput("an unknown option of a source", r"data\.calibration\.sources\.pth: expected an option of TextSource, .* did you mean data\.calibration\.sources\.path\?", spoil=config("path: texts/c", "pth: texts/c")),
        BadInput("an option that is missing", r"data\.\S*name: expected a value, got none", spoil=config("name: search, ", "")),
        BadInput("no configuration at all", r"^data\.search\.sources: expected a value, got none", ("fit", "--model.name_or_path=model"), command=""),
        BadInput("a word for a number", r"pruning\.search\.n_trials: expected a whole number, got 'many'", ("--pruning.search.n_trials=many",)),
        BadInput("two words for numbers", r"2 things to mend: .*n_trials: expected a whole number, got 'many'; .*max_steps: expected a whole number, got 'few'", ("--pruning.search.n_trials=many", "--trainer.max_steps=few")),
        BadInput("a word for an option of the optimizer", r"model\.optimizer\.lr: expected a number or a Tensor, got 'small'", ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=small")),
        BadInput("a number for a section", r"pruning\.budget: expected options in YAML, got 0\.3", ("--pruning.budget=0.3",)),
        BadInput("damaged YAML", r"--config: expected options in YAML, got .*line 2", spoil=text("base.yaml", "model: [\n - {")),
        BadInput("a file that is no configuration", r"--config: expected options in YAML, got 'just text'", spoil=text("base.yaml", "just text")),
        BadInput("an unknown configuration", r"--config: .* got 'quickstrat\.yaml'; did you mean 'quickstart\.yaml'", ("fit", "--config", "quickstrat.yaml"), command=""),
        BadInput("an unknown command", r"command: expected .* got 'fitt'; did you mean 'fit'\?", ("fitt", "--config", "base.yaml"), command=""),
        BadInput("a value that is not among the choices", r"pruning\.attention_units: expected a known attention_units, got 'heads'; Known: kv_group, query_head", ("--pruning.attention_units=heads",)),
        BadInput("an option without a value", r"pruning\.plan: expected a value, got none; write one behind it", ("--pruning.plan",)),
        BadInput("a word that is no option", r"arguments: expected options such as --trainer\.max_steps 100, got 'twice'", ("twice",)),
        BadInput("an unknown option of the refit", r"pruning\.reconstruction\.rigde: .* did you mean pruning\.reconstruction\.ridge\?", ("--pruning.reconstruction.rigde=1",)),
        BadInput("an import in a configuration", r"^import: expected an option of fit, got an unknown one", spoil=config("seed_everything", "import: my.py\nseed_everything")),
        BadInput("a file to import that is not there", r"--import: expected a Python file, got 'gone\.py', which is not there", ("--import", "gone.py")),
        BadInput("a file to import with an error of syntax", r"--import: expected my\.py to be importable, got SyntaxError in line 2: ", ("--import=my.py",), text("my.py", "x = 1\nx = = 2\n")),
        BadInput("a file to import that fails", r"--import: expected broken\.py to be importable, got ZeroDivisionError in line 1: ", ("--import=broken.py",), text("broken.py", "1 / 0\n")),
        BadInput("a stage that is needed", r"pruning: expected options, got null; ", ("--config=null.yaml",), text("null.yaml", "pruning: null")),
        BadInput("a checkpoint for a run without recovery", r"ckpt_path: expected none in a run without recovery, got a\.ckpt", ("--recovery", "null", "--ckpt_path=a.ckpt")),
        BadInput("an unknown optimizer", r"model\.optimizer: expected a class of torch\.optim, got 'AdamWW'; did you mean torch\.optim\.AdamW\?", ("--model.optimizer=torch.optim.AdamWW",)),
        BadInput("an optimizer's option out of range", r"model\.optimizer.*Invalid learning rate: -1", ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=-1")),
        BadInput("an option that the Trainer refuses", r"trainer: .*max_steps", ("--trainer.max_steps=-5",)),
        BadInput("an unknown precision", r"trainer\.precision: expected a known precision, got 'fp17'", ("--trainer.precision=fp17",)),
        BadInput("an accelerator that is not there", r"trainer: expected options that it takes, got: .*torch_xla", ("--trainer.accelerator=tpu",)),
        BadInput(
            "the same callback twice",
            r"trainer\.callbacks: expected one PruningSearchCallback, got 2",
            ("--trainer.callbacks=[{class_path: adapruner.callbacks.PruningSearchCallback}]",),
        ),
        BadInput(
            "errors in several sections",
            r"4 things to mend: .*budget\.pruned_fraction.*search\.n_trials.*model\.dtype.*data\.seed",
            ("--pruning.search.n_trials=0", "--pruning.budget.pruned_fraction=20", "--model.dtype=float8", "--data.seed=-1"),
        ),
    ),
    "Numbers and names": (
        BadInput("a fraction above 1", r"budget\.pruned_fraction: expected a number in \[0, 1\), got 20\.0; give 0\.2", ("--pruning.budget.pruned_fraction=20",)),
        BadInput("a negative fraction", r"budget\.pruned_fraction: expected a number in \[0, 1\), got -0\.1", ("--pruning.budget.pruned_fraction=-0.1",)),
        BadInput("no trials", r"search\.n_trials: expected 1 or more, got 0", ("--pruning.search.n_trials=0",)),
        BadInput("an unknown metric in the search", r"search\.space\.metrics: .* got 'talyor_second'; did you mean 'taylor_second'", ("--pruning.search.space.metrics=[talyor_second]",)),
        BadInput("an unknown metric in the report", r"report\.compare: .* got 'wanda'; did you mean 'wanda_sp'", ("--report.compare=[wanda]",)),
        BadInput("an unknown metric in a recipe", r"recipe\.coefficients: .* got 'taylr_mix'; did you mean 'taylor_mix'", ("--pruning.recipe={coefficients: {taylr_mix: 1.0}}",)),
        BadInput("an unknown sampler", r"search\.sampler: .* got 'tpee'; did you mean 'tpe'", ("--pruning.search.sampler=tpee",)),
        BadInput("an unknown reduction in a recipe", r"recipe\.reduction: .* got 'summ'; did you mean 'sum'", ("--pruning.recipe={coefficients: {l2: 1.0}, reduction: summ}",)),
        BadInput("an unknown normaliser", r"search\.space\.normalisers: .* got 'men'; did you mean 'mean'", ("--pruning.search.space.normalisers=[men]",)),
        BadInput("bounds upside down", r"search\.space\.gamma: expected \[low, high\] with low <= high", ("--pruning.search.space.gamma=[1, 0]",)),
        BadInput("no rounds", r"pruning\.rounds: expected 1 or more, got 0; give 1 to prune once", ("--pruning.rounds=0",)),
        BadInput("rounds of whole layers", r"pruning\.rounds: expected 1 with remove_layers or hidden_fraction, got 2; give 1, or do without it", ("--pruning.rounds=2", "--pruning.remove_layers=1")),
        BadInput("rounds of single query heads", r"pruning\.rounds: expected 1 with attention_units query_head, got 2", ("--pruning.rounds=2", "--pruning.attention_units=query_head")),
        BadInput("rounds of a searched budget", r"pruning\.rounds: expected 1 with a pruned_fraction beside the budget's, got 2", ("--pruning.rounds=2", "--pruning.search.space.pruned_fraction=[0.2, 0.3]")),
        BadInput("two budgets", r"budget: expected at most one absolute target", ("--pruning.budget.parameters_left=9000", "--pruning.budget.weight_memory_gib=1")),
        BadInput("a plan and a recipe", r"pruning\.recipe: expected a plan or a recipe, got both", (*_PLAN, "--pruning.recipe={coefficients: {l2: 1.0}}")),
        BadInput("dropout of 1", r"lora\.dropout: expected a number in \[0, 1\), got 1\.0", ("--recovery.lora.dropout=1.0",)),
        BadInput("a time that is none", r"recovery\.time_budget: expected a duration above 0 such as 45m .*, got 'soon'; give 45m", ("--recovery.time_budget=soon",)),
        BadInput("no time at all", r"recovery\.time_budget: expected a duration above 0 such as 45m .*, got 0.*; give 45m", ("--recovery.time_budget=0",)),
        BadInput("a comparison after a recovery of so much time", r"report\.compare_recovered: expected a number of steps for all, got recovery\.time_budget", ("--recovery.time_budget=45m", "--report.compare_recovered=true", "--report.compare=[l2]")),
        BadInput("a comparison after a judged recovery", r"report\.compare_recovered: expected the same steps for all, got recovery\.early_stop\.every_n_steps 20; leave one", ("--recovery.early_stop.every_n_steps=20", "--report.compare_recovered=true", "--report.compare=[l2]")),
        BadInput("an unknown part beside the adapters", r"lora\.also_train: expected parts out of norms, biases, got 'norm'; did you mean 'norms'", ("--recovery.lora.also_train=[norm]",)),
        BadInput("biases of a model that has none", r"recovery\.lora\.also_train: expected parts that the model has, got 'biases', and LlamaForCausalLM has none", ("--recovery.lora.also_train=[biases]",)),
        BadInput("norms of 16 bits", r"recovery\.lora\.also_train: expected norms of 32 bits, since 16 bits round steps away, got bfloat16; load the model in float32", ("--recovery.lora.also_train=[norms]", "--model.dtype=bfloat16")),
        BadInput("norms at half precision", r"trainer\.precision: expected weights in float32 for norms, got bf16-true; give bf16-mixed", ("--recovery.lora.also_train=[norms]", "--trainer.precision=bf16-true")),
        BadInput("a folder of adapters beside which norms train", r"export\.adapters: expected adapters alone to train for a folder of them, got recovery\.lora\.also_train norms", ("--recovery.lora.also_train=[norms]", "--export.adapters=folder")),
        BadInput("a look at held-out text every -1 steps", r"early_stop\.every_n_steps: expected 0 or more, got -1; give 20", ("--recovery.early_stop.every_n_steps=-1",)),
        BadInput("no patience", r"early_stop\.patience: expected 1 or more, got 0", ("--recovery.early_stop.patience=0",)),
        BadInput("a recovery that is judged on its own text", r"recovery\.early_stop: expected held-out text that recovery does not train on, got documents of its text in all", ("--recovery.early_stop.every_n_steps=1",), config("texts/recovery.txt", "texts/search.txt")),
        BadInput("an unknown form of recovery", r"recovery\.form: expected a known form, got 'fulll'; did you mean 'full'", ("--recovery.form=fulll",)),
        BadInput("full fine-tuning of 16 bits", r"recovery\.form: expected lora for weights of 16 bits, .* got full for bfloat16; load the model in float32", ("--recovery.form=full", "--model.dtype=bfloat16")),
        BadInput("full fine-tuning at half precision", r"trainer\.precision: expected weights in float32 for full fine-tuning, got bf16-true; give bf16-mixed", ("--recovery.form=full", "--trainer.precision=bf16-true")),
        BadInput("a folder of adapters where there are none", r"export\.adapters: expected recovery\.form lora for a folder of adapters, got 'full'; give merged", ("--recovery.form=full", "--export.adapters=folder")),
        BadInput("a loss that distils more than all", r"recovery\.distillation\.weight: expected a number in \[0, 1\], got 1\.5; give 0\.5", ("--recovery.distillation.weight=1.5",)),
        BadInput("a temperature of 0", r"recovery\.distillation\.temperature: expected a positive number, got 0\.0; give 1\.0", ("--recovery.distillation.temperature=0",)),
        BadInput("a teacher that keeps no tokens", r"recovery\.distillation\.top_k: expected 1 or more, got 0", ("--recovery.distillation.top_k=0",)),
        BadInput("a teacher that keeps more tokens than there are", r"recovery\.distillation\.top_k: expected at most 96, the vocabulary, got 1000; give 32", ("--recovery.distillation.weight=0.5", "--recovery.distillation.top_k=1000")),
        BadInput("rank 0", r"lora: expected r and alpha of 1 or more, got 0", ("--recovery.lora.r=0",)),
        BadInput("a negative ridge", r"reconstruction\.ridge: expected a positive number, got -1", ("--pruning.reconstruction.ridge=-1",)),
        BadInput("a ridge relative to nothing known", r"reconstruction\.relative_to: expected a known relative_to, got 'gram'", ("--pruning.reconstruction.relative_to=gram",)),
        BadInput("a negative limit of hidden states", r"reconstruction\.states_gib: expected a number of 0 or more, got -1", ("--pruning.reconstruction.states_gib=-1",)),
        BadInput("a folder for hidden states that is not there", r"reconstruction\.states_folder: expected a folder, got gone, which is not there", ("--pruning.reconstruction.states_gib=0", "--pruning.reconstruction.states_folder=gone")),
        BadInput("a share of a source that is not there", r"data\.search\.shares: expected names of sources, got 'cod'", ("--data.search.shares={cod: 2.0}",)),
        BadInput("gates that run backwards", r"gates\.steps: expected 0 or more, got -1", ("--pruning.gates.steps=-1",)),
        BadInput("gates that learn nothing", r"gates\.learning_rate: expected a positive number, got 0\.0", ("--pruning.gates.learning_rate=0",)),
        BadInput("gates that diverge by more than all", r"gates\.divergence: expected a number in \[0, 1\], got 1\.5; give 1\.0", ("--pruning.gates.divergence=1.5",)),
        BadInput("gates that keep more tokens than there are", r"gates\.top_k: expected at most 96, the vocabulary, got 1000; give 32", ("--pruning.gates.steps=2", "--pruning.gates.top_k=1000")),
        BadInput("a refit on no windows", r"data\.reconstruction\.samples_per_source: expected a whole number >= 1, got 0", ("--data.reconstruction.samples_per_source=0",)),
        BadInput("an unknown export dtype", r"export\.dtype: .* got 'float17'; did you mean 'float1", ("--export.dtype=float17",)),
        BadInput("a shard size without a unit", r"export\.max_shard_size: expected a size such as 2GB, got '5'", ("--export.max_shard_size=5",)),
        BadInput("an unknown dtype of the model", r"model\.dtype: expected one of auto, .* got 'float8'", ("--model.dtype=float8",)),
        BadInput("a batch of nothing", r"data\.batch_size: expected a whole number >= 1, got 0", ("--data.batch_size=0",)),
        BadInput(
            "two bad numbers in the data",
            r"2 things to mend: \(1\) data\.calibration\.seq_len: .* \(2\) data\.search\.samples: ",
            ("--data.calibration.seq_len=1", "--data.search.samples=0"),
        ),
    ),
    "The budget and the model": (
        BadInput("a budget that no plan reaches", r"budget\.pruned_fraction: expected at most 0\.\d+ of block parameters", ("--pruning.budget.pruned_fraction=0.99",)),
        BadInput("an absolute budget that no plan reaches", r"budget\.parameters_left: expected a target from \d+ to \d+ parameters", ("--pruning.budget.parameters_left=10",)),
        BadInput("more protected layers than there are", r"budget\.protect_first: expected at most the model's 3 layers, got 7", ("--pruning.budget.protect_first=7",)),
        BadInput("all layers protected", r"budget\.protect_first, budget\.protect_last: expected one of the model's 3 layers", ("--pruning.budget.protect_first=2", "--pruning.budget.protect_last=1")),
        BadInput("a search for more than can go", r"budget\.pruned_fraction: expected at most 0\.\d+", ("--pruning.search.space.pruned_fraction=[0.2, 0.99]",)),
        BadInput("adapters on a layer that is not there", r"recovery\.lora\.target_modules: .* got 'v_porj'; did you mean 'v_proj'", ("--recovery.lora.target_modules=[q_proj, v_porj]",)),
        BadInput("a model that is not there", r"model\.name_or_path: expected a folder or a hub name, got './no-model', which is not there", ("--model.name_or_path=./no-model",)),
        BadInput("a model's name with a space", r"model\.name_or_path: expected a folder or a hub name, got 'two words': no folder here, and .* cannot be a hub name", ("--model.name_or_path=two words",)),
        BadInput("a model without its configuration", r"model\.name_or_path: expected a ", spoil=gone("model/config.json")),
        BadInput("a model without its weights", r"model\.name_or_path: expected a model to load from 'model'", spoil=gone("model/model.safetensors")),
        BadInput("weights cut short", r"model\.name_or_path: expected a model to load from 'model'", spoil=cut("model/model.safetensors")),
        BadInput("weights with a tensor missing", r"expected every tensor of LlamaForCausalLM in 'model', got none for model\.layers\.1\.mlp\.up_proj\.weight", spoil=tensors(without_a_tensor)),
        BadInput("a model that is no language model", r"model\.name_or_path: expected a model to load", spoil=json_field("model/config.json", "model_type", "vit")),
        BadInput("a weight that is not a number", r"model: expected finite weights, got nan in model\.layers\.1\.mlp\.up_proj\.weight", spoil=tensors(with_nan)),
        BadInput("a weight too large for float16", r"got inf in model\.layers\.2\.mlp\.up_proj\.weight; .*float16", ("--model.dtype=float16",), tensors(too_large_for_float16)),
        BadInput(
            "activations that overflow in float16",
            r"expected finite activations, got inf or nan from model\.layers\.1\.mlp\S* on, on calibration sample 0 in float16; give --model\.dtype bfloat16",
            ("--model.dtype=float16",),
            tensors(overflowing_in_float16),
        ),
        BadInput("activations that overflow", r"expected finite activations, .*model\.layers\.1\.mlp\S* on, on calibration sample 0 in float32", spoil=tensors(overflowing)),
        BadInput("an unknown attention implementation", r"model\.name_or_path: expected a model to load .*attn_implementation", ("--model.attn_implementation=flash_attention_9",)),
    ),
    "Folders of models": (
        BadInput("weights of more layers", r"expected every tensor of LlamaForCausalLM in 'model', got also model\.layers\.2\.\S+ and 8 more, which config\.json has no place for", spoil=json_field("model/config.json", "num_hidden_layers", 2)),
        *(
            BadInput(f"weights of more layers, {command}", r"got also model\.layers\.2\.", _EVALUATED, json_field("model/config.json", "num_hidden_layers", 2), command)
            for command in ("validate", "test", "predict")
        ),
        BadInput("weights of other widths", r"expected shape \(24, 32\) for model\.layers\.0\.self_attn\.k_proj\.weight in 'model', got \(16, 32\)", spoil=json_field("model/config.json", "num_key_value_heads", 4, head_dim=6)),
        *(
            BadInput(f"a weight that is not a number, {command}", r"model: expected finite weights, got nan in model\.layers\.1\.mlp\.up_proj\.weight", _EVALUATED, tensors(with_nan), command)
            for command in ("validate", "test", "predict")
        ),
        BadInput("a width that no heads divide", r"expected a \w+ to load .*hidden size \(33\) is not a multiple", spoil=json_field("model/config.json", "hidden_size", 33)),
        *(
            BadInput(f"{key} of {value!r}", rf"expected {key} of 1 or more in 'model/config\.json', got {value!r}", spoil=json_field("model/config.json", key, value))
            for key, value in (("num_attention_heads", 0), ("num_hidden_layers", 0), ("num_hidden_layers", "8"), ("num_key_value_heads", -1), ("vocab_size", 2.5), ("hidden_size", True))
        ),
        BadInput("a model's configuration that is a list", r"expected a JSON object in 'model/config\.json', got list", spoil=text("model/config.json", "[1]")),
        BadInput("a state-space model", r"model: expected a decoder whose layers have attention and an FFN, got MambaForCausalLM", spoil=state_space_model),
        *(
            BadInput(f"an index of shards with {name}", message, spoil=shard_index(content))
            for name, content, message in (
                ("damage", '{"weight_map": {"mod', r"expected a JSON object in 'model/model\.safetensors\.index\.json', got damage"),
                ("deep nesting", "[" * 100_000, r"expected a JSON object in 'model/model\.safetensors\.index\.json', got damage"),
                ("nothing in it", '{"weight_map": null}', r"expected weight_map with a file for each tensor"),
                ("numbers for files", '{"weight_map": {"lm_head.weight": 3}}', r"expected weight_map with a file for each tensor"),
                ("a shard that is not there", '{"weight_map": {"lm_head.weight": "gone.safetensors"}}', r"expected the file 'gone\.safetensors' that model\.safetensors\.index\.json names"),
                ("a shard elsewhere", '{"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}', r"expected the file '\.\./elsewhere\.safetensors'"),
            )
        ),
        BadInput("adapters in place of a model", r"model\.name_or_path: expected a model, got adapters of 'model' in 'adapter'", ("--model.name_or_path=adapter",), adapter_folder),
    ),
    "Text and tokenizer": (
        BadInput("text that is not there", r"source 'books': path: expected a file or a folder, got 'texts/gone\.txt'", spoil=config("texts/calibration", "texts/gone")),
        BadInput(
            "three files that are not there",
            r"3 things to mend: .*'books'.*'search'.*'test'",
            spoil=lambda folder: [gone(f"texts/{name}.txt")(folder) for name in ("calibration", "search", "test")] and None,
        ),
        BadInput("empty text", r"source 'books': expected documents with text in texts/calibration\.txt, got none", spoil=text("texts/calibration.txt", "")),
        BadInput("blank text", r"source 'books': expected documents with text in", spoil=text("texts/calibration.txt", "\n \n\n \n")),
        BadInput("too little calibration text", r"data, calibration, source 'books': expected 4 windows of 16 tokens, got 1 \(\d+ tokens\) in 1 document of \d+ characters; give at least 64 tokens", spoil=text("texts/calibration.txt", "w1 w2 w3 " * 8)),
        BadInput("too little text to measure on", r"data, evaluation, source 'test': expected at least 1 window of 32 tokens, got 0 \(9 tokens\)", spoil=text("texts/test.txt", "w1 w2 w3 " * 3)),
        BadInput("no text in a part of it", r"data, calibration, source 'books', part \[0\.9, 1\): expected .* got none of 1 document \(\d+ characters\); give about 29 documents", ("--data.calibration.sources=[{name: books, path: texts/calibration.txt, part: [0.9, 1.0]}]",), text("texts/calibration.txt", "w1 w2 w3 w4")),
        BadInput("text that is not UTF-8", r"expected a readable UTF-8 or parquet file", spoil=lambda folder: (folder / "texts/calibration.txt").write_bytes(b"\xff\xfe\xfa" * 99) and None),
        BadInput("an unknown kind of file", r"source 'books': path: expected one of \.txt, .* got 'plan\.docx'", ("--data.calibration.sources=[{name: books, path: plan.docx}]",), text("plan.docx", "x")),
        BadInput("a missing column", r"source 'books': expected a column 'text' in 'rows\.jsonl', got the columns body", (f"--data.calibration.sources={_ONE_SOURCE}",), text("texts/rows.jsonl", '{"body": "w1"}\n')),
        BadInput("conversations where text is read", r"source 'books': expected a column 'text' in 'rows\.jsonl', got the columns messages; give chat: true", (f"--data.calibration.sources={_ONE_SOURCE}",), text("texts/rows.jsonl", _CONVERSATION)),
        BadInput("conversations, and a tokenizer without a chat template", r"source 'books': rows\.jsonl#0: expected a tokenizer with a chat template, got none; give chat: false", (f"--data.calibration.sources={_CHAT}",), text("texts/rows.jsonl", _CONVERSATION)),
        BadInput("a chat template that refuses the system", r"source 'books': rows\.jsonl#0: expected a conversation .* got 'no system role'; put what the system says into the first message of the user", (f"--data.calibration.sources={_CHAT}",), chat_template("{{ raise_exception('no system role') }}", "texts/rows.jsonl", _CONVERSATION)),
        BadInput("messages of another form", r"source 'books': row 0 of 'rows\.jsonl': expected role and content as text in every message, got from str, value str; convert it", (f"--data.calibration.sources={_CHAT}",), text("texts/rows.jsonl", '{"messages": [{"from": "human", "value": "w1"}]}')),
        BadInput("a number for text", r"expected text in column 'text', got int in row 0", (f"--data.calibration.sources={_ONE_SOURCE}",), text("texts/rows.jsonl", '{"text": 3}\n')),
        BadInput("damaged rows", r"expected one JSON object a line, got .* line 2", (f"--data.calibration.sources={_ONE_SOURCE}",), text("texts/rows.jsonl", '{"text": "w1"}\n{"tex\n')),
        BadInput("rows nested too deep", r"expected one JSON object a line, got 'maximum recursion depth .* in 'rows\.jsonl' line 1", (f"--data.calibration.sources={_ONE_SOURCE}",), text("texts/rows.jsonl", "[" * 100_000)),
        BadInput("a number of 5000 digits", r"expected one JSON object a line, got 'Exceeds the limit .* in 'rows\.jsonl' line 1", (f"--data.calibration.sources={_ONE_SOURCE}",), text("texts/rows.jsonl", '{"text": ' + "1" * 5000 + "}")),
        BadInput("half of a character", r"source 'books': row 0 of 'rows\.jsonl': expected whole characters, got the lone surrogate '\\ud83d'", (f"--data.calibration.sources={_ONE_SOURCE}",), text("texts/rows.jsonl", '{"text": "half \\ud83d"}')),
        BadInput("a split that a folder does not have", r"source 'books': path: expected files of the split 'validation' in 'texts', got the splits test; name one of them", ("--data.calibration.sources=[{name: books, path: texts, split: validation}]",)),
        BadInput("an unknown source of the demo", r"expected a demo source, got 'stdlb'; did you mean 'stdlib'", spoil=config("path: texts/search.txt", "demo: stdlb, split: search")),
        BadInput("a source in two places at once", r"expected exactly one of hub, path, demo, texts and kind, got path and demo", spoil=config("path: texts/search.txt", "path: texts/search.txt, demo: stdlib")),
        BadInput("an unknown kind of source", r"source 'search', kind: expected a known kind of data source, got 'files'; .* path, texts", spoil=config("path: texts/search.txt", "kind: files")),
        BadInput("the same name twice", r"data\.calibration\.sources: expected one or more entries, each once", ("--data.calibration.sources=[{name: a, path: texts}, {name: a, path: texts}]",)),
        BadInput("a refit on the sources of a given set", r"data\.reconstruction\.sources: expected sources beside a given calibration set \(gone\.json\), got none", ("--data.calibration.sources=[]", "--data.calibration.given_set=gone.json", "--data.reconstruction.samples_per_source=4")),
        BadInput("no sources", r"data\.calibration: expected exactly one of sources and given_set, got neither", ("--data.calibration.sources=[]",)),
        BadInput("an unknown source in a recipe", r"source_weights: expected a calibration source, got 'boks'; did you mean 'books'", ("--pruning.recipe={coefficients: {l2: 1.0}, calibration: {source_weights: {boks: 1.0}}}",)),
        BadInput("more samples than the pool has", r"search\.space\.subset_sizes: expected at most 4 samples, got 64", ("--pruning.search.space.subset_sizes=[64]",)),
        BadInput("a length that the pool was not cut at", r"search\.space\.seq_lens: expected lengths of the pool \(16\), got 64", ("--pruning.search.space.seq_lens=[64]",)),
        BadInput("more clusters than samples", r"data\.calibration\.clusters: expected at most one per sample \(4\), got 8", ("--data.calibration.clusters=8",)),
        BadInput("calibration text in the evaluation set", r"expected calibration and evaluation 'test' to share no document, got \d+ in both; .* allow_leak: true", spoil=config("texts/test.txt", "texts/calibration.txt")),
        BadInput("recovery text in the evaluation set", r"expected recovery and evaluation 'test' to share no document", spoil=config("texts/test.txt", "texts/recovery.txt")),
        BadInput("calibration text in the search split", r"expected calibration and search to share no document", spoil=config("texts/search.txt", "texts/calibration.txt")),
        BadInput("sequences longer than the model takes", r"data\.search\.seq_len: expected at most the model's 20 positions, got 24", ("--data.search.seq_len=24", "--data.evaluation=[]"), json_field("model/config.json", "max_position_embeddings", 20)),
        BadInput(
            "several sets longer than the model takes",
            r"data\.calibration\.seq_len, .*data\.evaluation\.test\.windows, report\.latency_seq_len: expected at most the model's 12 positions, got 32",
            spoil=json_field("model/config.json", "max_position_embeddings", 12),
        ),
        BadInput("tokens that the model does not have", r"data\.calibration\.seq_len: expected tokens below the model's 96, got 103: the tokenizer does not match", spoil=larger_vocabulary),
        BadInput("a tokenizer of another model", r"data\.tokenizer: expected the model's vocabulary, got another in 'other'", ("--data.tokenizer=other",), other_tokenizer),
        BadInput("a tokenizer that is not there", r"data\.tokenizer: expected a tokenizer's folder or hub name, got '\./none': .* cannot be a hub name", ("--data.tokenizer=./none",)),
        BadInput("a model without a tokenizer", r"model\.name_or_path: expected a tokenizer to load from 'model'", spoil=no_tokenizer),
        BadInput("nothing to train on", r"data\.recovery: expected data to train on, got null", ("--data.recovery=null",)),
        BadInput("a calibration set that is not there", r"calibration set gone\.json: expected a readable file", ("--data.calibration.sources=[]", "--data.calibration.given_set=gone.json")),
        BadInput("a calibration set of another version", r"calibration set set\.json: expected version 1, got 0", ("--data.calibration.sources=[]", "--data.calibration.given_set=set.json"), text("set.json", '{"version": 0}')),
    ),
    "Plans, journals and folders": (
        BadInput("a plan that is not there", r"plan gone\.json: expected a readable file, got No such file", ("--pruning.plan=gone.json",)),
        BadInput("a damaged plan", r"plan plan\.json: expected JSON, got damage", _PLAN, cut("plan.json")),
        BadInput("an old version of the plan", r"plan plan\.json: expected version \S+, got 0; search again", _PLAN, json_field("plan.json", "version", 0)),
        BadInput("a plan changed by hand", r"plan plan\.json: expected hash .* the plan was changed", _PLAN, json_field("plan.json", "hash", "0123")),
        BadInput("a plan for a model of another shape", r"plan: expected units 160 in group '\d\.ffn' of this model, got 96", _PLAN, foreign_plan),
        BadInput("a plan for other weights", r"plan: expected a plan for the model with fingerprint \w+, got one for", _PLAN, plan_of_other_weights),
        BadInput("a damaged journal", r"search: expected a sound journal in run/study\.journal, got damage", spoil=text("run/study.journal", "no journal\n")),
        BadInput("a journal of another search", r"search: expected the study in run/study\.journal to have the same .*choose another run folder", spoil=foreign_journal),
        BadInput("a checkpoint that is not there", r"ckpt_path: expected a checkpoint, got 'gone\.ckpt', which does not exist", ("--ckpt_path=gone.ckpt",)),
        BadInput("a damaged checkpoint", r"ckpt_path: expected a whole Lightning checkpoint .*, got damage in 'bad\.ckpt'", ("--ckpt_path=bad.ckpt",), text("bad.ckpt", "PK half")),
        BadInput("a folder that is no checkpoint", r"ckpt_path: expected a checkpoint, got the folder '\.' without meta\.pt", ("--ckpt_path=.",)),
        BadInput("a file where the run folder should be", r"trainer\.default_root_dir: expected a folder, got a file", spoil=file_in_place_of_the_run_folder),
        BadInput("an export over other files", r"expected .*mine", ("--export.folder=mine",), foreign_export_folder),
    ),
    "The other commands": (
        BadInput("export of no run", r"run: expected the folder of a run, or an export, got no folder at gone", ("gone", "out"), command=_EXPORT),
        BadInput("export of a folder that is no run", r"run: expected a run with plan\.json, got texts without it", ("texts", "out"), command=_EXPORT),
        BadInput("an unknown dtype of an export", r"dtype: expected float32, bfloat16 or float16, got 'float8'", ("run", "out", "--dtype", "float8"), command=_EXPORT),
        BadInput("an export for DeciLM over other files", r"folder: expected an empty folder or an earlier export, got other files in .*mine; choose another", ("run", "mine", "--format", "deci"), foreign_export_folder, command=_EXPORT),
        BadInput("export without a folder", r"export: expected adapruner export RUN DIR", ("run",), command=_EXPORT),
        BadInput("an unknown option of export", r"export: expected .* got unrecognized arguments: --half", ("run", "out", "--half"), command=_EXPORT),
        BadInput("a comparison of nothing", r"base: expected at least one, got none", (), command=_COMPARE),
        BadInput("an unknown method", r"got 'baselines/l3\.yaml'; did you mean 'baselines/l2\.yaml'", ("--base", "base.yaml", "--methods", "baselines/l3.yaml", "--budgets", "0.2", "--seeds", "0"), command=_COMPARE),
        BadInput("a comparison on a device that is no GPU", r"devices: expected numbers or identifiers of GPUs, got 'cpu'; give 0 1", ("--base", "base.yaml", "--methods", "adapruner", "--budgets", "0.2", "--devices", "cpu"), command=_COMPARE),
        BadInput("a fraction beside a plan", r"fraction: expected none beside --pruning\.plan, which says what goes, got 0\.3", ("model", "--texts", "texts/rows.jsonl", "--fraction", "0.3", "--pruning.plan", "plan.json"), command="prune"),
        BadInput(
            "an unknown option in a comparison",
            r"methods: .* pruning\.search\.n_trails: .* did you mean pruning\.search\.n_trials",
            ("--base", "base.yaml", "--methods", "adapruner", "--budgets", "0.2", "--seeds", "0", "--folder", "all", "--", "--pruning.search.n_trails=3"),
            command=_COMPARE,
        ),
    ),
    "Short options of prune": (
        *(BadInput(f"{what} for prune", message, ("prune", "model", "--texts", "texts", *arguments), spoil, command="") for what, message, arguments, spoil in SHORT_OPTIONS),
    ),
    "Text that the model writes": (
        BadInput("no text to prune with", r"texts: expected --texts PATH, got none; name a file or a folder of text, or let the model write some first: adapruner write-texts model --out own\.jsonl, then --texts own=own\.jsonl", ("model",), command="prune"),
        BadInput("no file to write text to", r"write-texts: expected adapruner write-texts MODEL --out FILE\.jsonl \[options\], got the following arguments are required: --out", ("model",), command="write-texts"),
        BadInput("text that the model writes over another's", r"out: expected a new file, or one that write-texts began, got mine\.jsonl; choose another name", ("model", "--out=mine.jsonl"), text("mine.jsonl", "mine"), "write-texts"),
        BadInput("text that the model writes into a file of another kind", r"out: expected a file name that ends with \.jsonl, got 'own\.txt'; give own\.jsonl", ("model", "--out=own.txt"), command="write-texts"),
        BadInput("text that the model writes into a folder", r"out: expected a file, got a folder, own\.jsonl; choose another name", ("model", "--out=own.jsonl"), lambda folder: (folder / "own.jsonl").mkdir(), "write-texts"),
        BadInput("text that the model writes below a file", r"out: expected a folder, got a file, .*base\.yaml", ("model", "--out=base.yaml/own.jsonl"), command="write-texts"),
        BadInput("text that the model writes into a bucket", r"out: expected a local path, got 's3://b/own\.jsonl'", ("model", "--out=s3://b/own.jsonl"), command="write-texts"),
        BadInput("no documents for the model to write", r"documents: expected 1 or more, got 0; give 640", ("model", "--out=own.jsonl", "--documents=0"), command="write-texts"),
        BadInput("documents that the model writes without a token", r"tokens: expected 1 or more, got 0; give 256", ("model", "--out=own.jsonl", "--tokens=0"), command="write-texts"),
        BadInput("documents longer than the model", r"tokens: expected at most 255 behind the first, which the model has 256 positions for, got 256; give fewer", ("model", "--out=own.jsonl"), command="write-texts"),
        BadInput("text drawn at no temperature", r"temperature: expected a number above 0, got 0\.0; give 1, the model's own distribution", ("model", "--out=own.jsonl", "--temperature=0"), command="write-texts"),
        BadInput("text drawn with a seed below 0", r"seed: expected a whole number from 0 to 2\*\*32 - 1, got -1", ("model", "--out=own.jsonl", "--seed=-1"), command="write-texts"),
        BadInput("text drawn by none at a time", r"batch_size: expected 1 or more, got 0; give 32", ("model", "--out=own.jsonl", "--batch_size=0"), command="write-texts"),
        BadInput("text by a model that is not there", r"model: expected a folder or a hub name, got '\./modle', which is not there", ("./modle", "--out=own.jsonl"), command="write-texts"),
        BadInput("text drawn in an unknown type", r"dtype: expected one of auto, float32, bfloat16, float16, got 'float8'; name one of them", ("model", "--out=own.jsonl", "--dtype=float8"), command="write-texts"),
        BadInput("text by a model with a weight that is not a number", r"model: expected finite weights, got nan in model\.layers\.1\.mlp\.up_proj\.weight", ("model", "--out=own.jsonl", "--tokens=8"), tensors(with_nan), "write-texts"),
    ),
    "Nothing that a configuration names is run": (
        BadInput("a function as the optimizer", r"model\.optimizer: expected a subclass of Optimizer, got 'os\.system'", spoil=config("dtype: float32", "optimizer: {class_path: os.system, init_args: {command: touch PWNED}}")),
        BadInput("a function as the optimizer, by its name", r"model\.optimizer: expected a subclass of Optimizer, got 'os\.system'", ("--model.optimizer=os.system",)),
        BadInput("another class as the optimizer", r"model\.optimizer: expected a subclass of Optimizer, got 'subprocess\.Popen'", spoil=config("dtype: float32", "optimizer: {class_path: subprocess.Popen, init_args: {args: [touch, PWNED]}}")),
        BadInput("a function as the scheduler", r"model\.scheduler: expected a subclass of LRScheduler", spoil=config("dtype: float32", "scheduler: {class_path: subprocess.getoutput, init_args: {cmd: touch PWNED}}")),
        BadInput("a function inside the scheduler", r"model\.scheduler\.lr_lambda: ", spoil=config("dtype: float32", "scheduler: {class_path: torch.optim.lr_scheduler.LambdaLR, init_args: {lr_lambda: fsspec.open}}")),
        BadInput("a function as a logger", r"trainer\.logger: expected a subclass of Logger, got 'os\.system'", ("--trainer.logger={class_path: os.system, init_args: {command: touch PWNED}}",)),
        BadInput("a function in a list of loggers", r"trainer\.logger: expected a Logger", ("--trainer.logger=[{class_path: os.system, init_args: {command: touch PWNED}}]",)),
        BadInput("a function as a callback", r"trainer\.callbacks: expected a subclass of Callback, got 'os\.system'", ("--trainer.callbacks+={class_path: os.system, init_args: {command: touch PWNED}}",)),
        BadInput("a function inside a callback", r"trainer\.callbacks\.setup: ", ("--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {setup: {class_path: fsspec.open, init_args: {urlpath: PWNED, mode: w}}}}]",)),
        BadInput("the name of a function inside a callback", r"trainer\.callbacks\.setup: expected no function, got 'fsspec\.", ("--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {setup: fsspec.open}}]",)),
        BadInput("a function as the strategy", r"trainer\.strategy: expected a subclass of Strategy", ("--config={trainer: {strategy: {class_path: os.system, init_args: {command: touch PWNED}}}}",)),
        BadInput("a function as the profiler", r"trainer\.profiler: expected a subclass of Profiler", ("--config={trainer: {profiler: {class_path: os.system, init_args: {command: touch PWNED}}}}",)),
        BadInput("a function among the plugins", r"trainer\.plugins: expected a subclass of Precision or ClusterEnvironment", ("--trainer.plugins=[{class_path: os.system, init_args: {command: touch PWNED}}]",)),
        BadInput("a function inside a plugin", r"trainer\.plugins\.checkpoint_io: expected a subclass of CheckpointIO", ("--trainer.plugins={class_path: lightning.pytorch.plugins.io.AsyncCheckpointIO, init_args: {checkpoint_io: {class_path: os.system, init_args: {command: touch PWNED}}}}",)),
        BadInput("a function as a source", r"data\.search\.sources: expected a subclass of TextSource", ("--data.search.sources=[{class_path: os.system, init_args: {command: touch PWNED}}]",)),
        BadInput("a class of a module that lies beside the configuration", r"trainer\.callbacks: expected the path of a class, .* got 'beside\.Mine'", ("--trainer.callbacks=[{class_path: beside.Mine}]",), text("beside.py", "open('PWNED', 'w').close()\nfrom lightning import Callback\nclass Mine(Callback): pass\n")),
        BadInput("a function in a group's own file", r"model\.optimizer: expected a subclass of Optimizer", ("--model=evil.yaml",), text("evil.yaml", "optimizer: {class_path: os.system, init_args: {command: touch PWNED}}")),
        BadInput("a function in a compared method", r"methods: .* for evil: model\.optimizer: expected a subclass of Optimizer", ("--base", "base.yaml", "--methods", "evil.yaml", "--budgets", "0.2", "--seeds", "0", "--folder", "all"), text("evil.yaml", "model: {optimizer: {class_path: os.system, init_args: {command: touch PWNED}}}"), _COMPARE),
        BadInput("a function in the options of a comparison", r"methods: .* model\.optimizer: expected a subclass of Optimizer", ("--config", "all.yaml"), text("all.yaml", "{base: base.yaml, methods: [adapruner], budgets: [0.2], seeds: [0], folder: all, options: {model.optimizer: os.system}}"), _COMPARE),
        BadInput("a model's code in a configuration", r"model\.trust_remote_code: expected on the command line alone", spoil=config("dtype: float32", "trust_remote_code: true")),
        BadInput("a model's code in the options of a comparison", r"options: expected none that runs code, got 'model\.trust_remote_code'", ("--config", "all.yaml"), text("all.yaml", "{base: base.yaml, methods: [adapruner], budgets: [0.2], options: {model.trust_remote_code: true}}"), _COMPARE),
        BadInput("a folder of tasks in a configuration", r"zero_shot\.task_folder: expected on the command line alone", spoil=config("report:", "zero_shot: {task_folder: tasks, tasks: [mine]}\nreport:")),
        BadInput("a kernel from the hub", r"model\.attn_implementation: expected one of the library, got 'somebody/kernel'", ("--model.attn_implementation=somebody/kernel",)),
        BadInput("a checkpoint's code", r"weights_only: expected true, got false", ("--weights_only=false",)),
        *(
            BadInput(f"a checkpoint {what}", r"ckpt_path: expected (a local path|the path of a checkpoint), got", (f"--ckpt_path={path}",))
            for what, path in {"on a web server": "http://host/evil.ckpt", "in a bucket": "s3://bucket/evil.ckpt", "in memory": "memory://evil.ckpt", "of a registry": "registry:somebody/model", "of a scheduler": "hpc", "by the name of the best": "best", "without a name": ""}.items()
        ),
        BadInput("a checkpoint on a web server, to test", r"ckpt_path: expected a local path, got 'http://host/evil\.ckpt'", ("test", "--config", "base.yaml", "--ckpt_path", "http://host/evil.ckpt"), command=""),
        BadInput("a checkpoint in a bucket, in a configuration to validate", r"ckpt_path: expected a local path, got 's3://b/c'", ("validate", "--config", "base.yaml", "--config", "{ckpt_path: 's3://b/c'}"), command=""),
        BadInput("a sharded checkpoint whose index runs code", r"ckpt_path: expected a whole Lightning checkpoint .*system, which no checkpoint needs", ("--ckpt_path=shards",), sharded_checkpoint_that_runs_code),
    ),
    "Files of options": (
        *(BadInput(f"{what} for {section}", rf"^{section}: expected options, got {re.escape(value)}; write some", (f"--config={{{nested(section, value)}}}",)) for section, what, value in SECTIONS),
        BadInput("a file in latin-1", r"--config: expected a file that can be read, got bytes that are not UTF-8 at base\.yaml", spoil=content("base.yaml", "name: \u00e4".encode("latin-1"))),
        BadInput("a file in UTF-16", r"--config: expected a file that can be read, got bytes that are not UTF-8", spoil=content("base.yaml", "model: {}".encode("utf-16"))),
        BadInput("a binary file", r"--config: expected (a file that can be read|options in YAML), got ", spoil=content("base.yaml", bytes(range(256)))),
        BadInput("a file with a NUL", r"--config: expected options in YAML, got .*control characters", spoil=content("base.yaml", b"model: a\0b")),
        BadInput("a whole number of 5000 digits in a file", r"--config: expected options in YAML, got a whole number of 5000 digits, in line 1 in base\.yaml", spoil=text("base.yaml", "seed_everything: " + "9" * 5000)),
        BadInput("a whole number of 5000 digits", r"pruning\.search\.seed: expected a value, got a whole number of 5000 digits", ("--pruning.search.seed=" + "9" * 5000,)),
        BadInput("aliases of aliases", r"--config: expected options in YAML, got more than 10,000 entries, aliases followed", spoil=text("base.yaml", ALIASES)),
        BadInput("an alias of itself", r"--config: expected options in YAML, got an alias of what it stands in, in line 1", spoil=text("base.yaml", "model: &a {b: *a}")),
        BadInput("deep nesting", r"--config: expected options in YAML, got more than 64 levels of nesting", spoil=text("base.yaml", "model: " + "[" * 100_000)),
        BadInput("deep nesting inside a text", r"--config: expected options in YAML, got more than 64 levels of nesting", spoil=text("base.yaml", "model: '" + "[" * 100_000 + "'")),
        BadInput("a key twice", r"--config: expected options in YAML, got the key 'pruning' twice, in line 3", spoil=text("base.yaml", "pruning: {search: {n_trials: 2}}\nmodel: {dtype: float32}\npruning: {}\n")),
        BadInput("a key twice in a method of a comparison", r"methods: expected YAML in .*twice\.yaml, got damage \(the key 'recovery' twice", ("--base", "base.yaml", "--methods", "twice.yaml", "--budgets", "0.2"), text("twice.yaml", "recovery: null\nrecovery: {}"), _COMPARE),
        BadInput("a name that is too long for a file", r"--config: expected a file, or the name of a shipped configuration, got 'xxx", ("fit", "--config", "x" * 300), command=""),
    ),
    "Numbers and places that fail late": (
        *(BadInput(f"{what}", rf"{argument}: expected a whole number from 0 to 2\*\*32 - 1, got {re.escape(str(value))}", (f"--{option}={value}",)) for what, option, argument, value in SEEDS),
        BadInput("steps over no batches", r"trainer\.accumulate_grad_batches: expected 1 or more, got 0", ("--trainer.accumulate_grad_batches=0",)),
        BadInput("a clipping norm that is no number", r"trainer\.gradient_clip_val: expected a number of 0 or more, got nan", ("--trainer.gradient_clip_val=.nan",)),
        BadInput("bounds that overflow", r"search\.space\.gamma: expected a number from -100 to 100, got -1e\+308", ("--pruning.search.space.gamma=[-1.0e+308, 1.0e+308]",)),
        BadInput("exponents that overflow", r"search\.space\.log10_ridge: expected a number from -100 to 100, got 400", ("--pruning.search.space.log10_ridge=[400, 500]",)),
        BadInput("a latency of one token", r"report\.latency_seq_len: expected 2 or more, got 1", ("--report.latency_seq_len=1",)),
        BadInput("a prompt longer than the model", r"prompts: expected fewer than the model's 256 tokens, got one of 400", ("--report.prompts=['" + "w1 " * 400 + "']",)),
        BadInput("a prompt to predict that is longer than the model", r"prompts: expected fewer than the model's 256 tokens, got one of 400", ("predict", "--config", "base.yaml", "--data.prompts", "prompts.txt"), text("prompts.txt", "w1 " * 400), ""),
        BadInput("adapters of a rank above the model's", r"recovery\.lora\.r: expected at most 32, .* got 1000000", ("--recovery.lora.r=1000000",)),
        BadInput("more processes than a CPU has cores", r"trainer\.devices: expected at most \d+ on this CPU, got 9999", ("--trainer.devices=9999",)),
        BadInput("an optimizer that adapters have no use for", r"model\.optimizer, model\.scheduler: .*SparseAdam does not support dense gradients", ("--model.optimizer=torch.optim.SparseAdam",)),
        BadInput("a schedule that ends before the training", r"model\.optimizer, model\.scheduler: .*Tried to step", ("--trainer.max_steps=5", "--model.scheduler=torch.optim.lr_scheduler.OneCycleLR", "--model.scheduler.max_lr=1", "--model.scheduler.total_steps=3")),
        BadInput("a learning rate that is no number", r"model\.optimizer, model\.scheduler: .*learning rate of nan", ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=.nan")),
        BadInput("a GGUF file by the name of another kind", r"export\.gguf: expected a file name that ends in \.gguf, got 'plan\.json'; give model\.gguf", ("--export.gguf=plan.json",)),
        BadInput("a GGUF file of adapters kept apart", r"export\.gguf: expected adapters merged, got adapters: folder", ("--export.gguf=model.gguf", "--export.adapters=folder")),
        BadInput("a GGUF file inside the export", r"export\.gguf: expected a file outside the exported folder .*, got .*model\.gguf; give model\.gguf", ("--export.gguf=model/model.gguf",)),
        BadInput("a GGUF file over another's", r"export\.gguf: expected a new name or an earlier export, got .*mine\.gguf, which is another's", ("--export.gguf=../mine.gguf",), text("mine.gguf", "mine")),
        BadInput("a GGUF file with a tokenizer that llama.cpp has not", r"export\.gguf: expected a model that GGUF holds, got another \(tokenizer: .* got a WordLevel tokenizer; .*\); or leave export\.gguf out", ("--export.gguf=model.gguf",)),
        BadInput("an export below a file", r"export\.folder: expected a folder, got a file", ("--export.folder=base.yaml/out",)),
        BadInput("an export in place of a link that leads nowhere", r"export\.folder: expected a folder, got a link that leads nowhere", ("--export.folder=link",), lambda folder: (folder / "link").symlink_to("gone")),
        BadInput("an export in place of a link to itself", r"export\.folder: expected a folder, got a link that leads nowhere", ("--export.folder=link",), lambda folder: (folder / "link").symlink_to("link")),
        BadInput("an export over the run folder", r"export\.folder: expected a folder of its own, got 'run', which holds the run folder", ("--export.folder=run",)),
        BadInput("a report below a file", r"report\.folder: expected a folder, got a file", ("--report.folder=base.yaml/out",)),
        BadInput("a run folder in a bucket", r"trainer\.default_root_dir: expected a local path, got 's3://bucket/run'", ("--trainer.default_root_dir=s3://bucket/run",)),
        BadInput("a run folder with too long a name", r"trainer\.default_root_dir: expected a path that a file system takes, got one of 300 characters", ("--trainer.default_root_dir=" + "x" * 300,)),
        BadInput("a run folder on too long a path", r"trainer\.default_root_dir: expected a path that a file system takes, got one of 6000 characters", ("--trainer.default_root_dir=" + "x/" * 3000,)),
        BadInput("a model with too long a name", r"model\.name_or_path: expected a path that a file system takes, got one of 5000 characters", ("--model.name_or_path=" + "x" * 5000,)),
        BadInput("a run folder with a NUL", r"trainer\.default_root_dir: expected a path, got .* with a NUL in it", ('--config={trainer: {default_root_dir: "a\\0b"}}',)),
        BadInput("a source with too long a name", r"expected paths that a file system takes, got File name too long", ("--data.search.sources=[{name: search, path: " + "x" * 300 + "}]",)),
    ),
}  # fmt: skip


def command_of(row: BadInput) -> list[str]:
    """The whole command line, behind ``adapruner``."""
    if row.command == "fit":
        return ["fit", "--config", "base.yaml", *row.arguments]
    return [*([row.command] if row.command else []), *row.arguments]
