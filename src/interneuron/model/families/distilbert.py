"""DistilBERT, and ALBERT, whose one layer is called again and again."""

from interneuron.model.families.bert import post_norm

DISTIL = {
    **{"resid_pre": ":in", "attn.z": "attention.out_lin:in | heads"},
    **{f"attn.{x}_proj": f"attention.{x}_lin:out | heads" for x in "qkv"},
    **{"attn.out": "attention:out", "attn.contribution": "attention:out"},
    **{"norm1": "sa_layer_norm:out", "resid_mid": "sa_layer_norm:out", "mlp.pre": "ffn.lin1:out"},
    **{"mlp.hidden": "ffn.lin2:in", "mlp.out": "ffn:out", "mlp.contribution": "ffn:out"},
    **{"norm2": ":out", "resid_post": ":out"},
}
ALBERT = {
    **{"resid_pre": ":in", "attn.z": "attention.dense:in | heads"},
    **{f"attn.{x[0]}_proj": f"attention.{x}:out | heads" for x in ("query", "key", "value")},
    **{"attn.out": "attention.dense:out", "attn.contribution": "attention.dense:out"},
    **{"norm1": "attention:out", "resid_mid": "attention:out", "mlp.pre": "ffn:out", "mlp.hidden": "ffn_output:in"},
    **{"mlp.out": "ffn_output:out", "mlp.contribution": "ffn_output:out", "norm2": ":out", "resid_post": ":out"},
}


LAYERS = "encoder.albert_layer_groups.*.albert_layers.*"
NORMS = ("attention.LayerNorm", "full_layer_layer_norm")
FAMILIES = [
    post_norm(
        "distilbert",
        "distilbert",
        "transformer.layer.*",
        DISTIL,
        "attention",
        ("sa_layer_norm", "output_layer_norm"),
    ),
    post_norm("albert", "albert", LAYERS, ALBERT, "attention", NORMS, repeat="num_hidden_layers"),
]
