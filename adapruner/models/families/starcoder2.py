"""StarCoder2 (arXiv 2402.19173): a feed-forward network without gates under names of its own."""

from adapruner.models.families.family import Family, register_family

register_family(Family("starcoder2", outputs={"self_attn.o_proj": "attention", "mlp.c_proj": "ffn"}))
