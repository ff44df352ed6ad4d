"""Encoders that normalise after each sum: BERT, RoBERTa, ELECTRA, DeBERTa.

The stream between the parts is a norm's output: `resid_mid` is `norm1`, and `resid_post` is `norm2`.
"""

from typing import Any

from interneuron.model.family import ROWS, Family, Stack

LAYER = {
    "resid_pre": ":in",
    **{f"attn.{x[0]}_proj": f"attention.self.{x}:out | heads" for x in ("query", "key", "value")},
    "attn.z": "attention.output.dense:in | heads",
    "attn.out": "attention.output.dense:out",
    "attn.contribution": "attention.output.dense:out",
    "norm1": "attention.output:out",
    "resid_mid": "attention.output:out",
    "mlp.pre": "intermediate.dense:out",
    "mlp.hidden": "output.dense:in",
    "mlp.out": "output.dense:out",
    "mlp.contribution": "output.dense:out",
    "norm2": ":out",
    "resid_post": ":out",
}
DEBERTA = {
    **LAYER,
    # The second call of the query and key projections is for the relative positions.
    **{f"attn.{x[0]}_proj": f"attention.self.{x}_proj:out | heads | call 0" for x in ("query", "key", "value")},
    "attn.pattern": "attention.self.dropout:in",
}


def post_norm(
    name: str, base: str, layers: str, layer: dict[str, Any], inner: str, norms: tuple[str, str], **more: Any
) -> Family:
    """A family of encoders whose layers end in the two norms given."""
    root = {
        "embed": f"{base}.embeddings:out",
        "logits": tuple(
            f":out.logits if {x}" for x in ("cls", "lm_head", "predictions", "generator_lm_head", "vocab_projector")
        ),
    }
    rows = (ROWS,) if "attn.pattern" in layer else ()
    equations = (
        f"resid_pre + attn.contribution = {norms[0]}:in",
        f"resid_mid + mlp.contribution = {norms[1]}:in",
        *rows,
    )
    when = {"num_hidden_groups": 1, "inner_group_num": 1} if "repeat" in more else {}
    stack = Stack(f"{base}.{layers}", layer, {"attn": inner}, equations, **more)
    return Family(name, (name,), when=when, root=root, stacks=(stack,))


TWO = ("attention.output.LayerNorm", "output.LayerNorm")
FAMILIES = [
    *(post_norm(x, x, "encoder.layer.*", LAYER, "attention.self", TWO) for x in ("bert", "roberta", "electra")),
    post_norm("deberta-v2", "deberta", "encoder.layer.*", DEBERTA, "attention.self", TWO),
]
