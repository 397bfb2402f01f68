"""Llama 1 to 3, TinyLlama, Vicuna; Mistral and Qwen2, Qwen3, which differ in what their configurations accept."""

from adapruner.models.families.family import Family, register_family

register_family(
    Family(
        "llama",
        equivalent="mistral",
        equivalent_changes=(("sliding_window", None),),
        equivalent_lacks=("attention_bias", "mlp_bias"),
        output_bias_switches=(("o_proj", "attention_bias"), ("down_proj", "mlp_bias")),
    )
)
register_family(Family("qwen3", output_bias_switches=(("o_proj", "attention_bias"),)))
