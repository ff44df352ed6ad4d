"""Tiny encoders, encoder-decoders, vision models, vision-language models and diffusion models; and `ALL` of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from architectures import DECODERS, EXPERTS, GROUPED, STATES, WIDE, Architecture, Inputs, hf, noise, seeded, tokens
from torch import nn

IMAGES = {"image_size": 16, "patch_size": 8, "num_channels": 3}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, **IMAGES}
LATENTS = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "norm_num_groups": 4}


def images() -> Inputs:
    return {"pixel_values": noise(2, 3, 16, 16)}


def both() -> Inputs:
    """Tokens for an encoder and fewer for a decoder."""
    ids = tokens()["input_ids"]
    return {"input_ids": ids, "decoder_input_ids": ids[:, 2:6].clone()}


def pairs() -> Inputs:
    """Two texts and two images, for contrastive models."""
    return {**tokens(), **images()}


def question() -> Inputs:
    """Text with one image each: four patches stand where the image token does."""
    ids = tokens()["input_ids"].clone()
    ids[:, 1:5] = 60
    return {"input_ids": ids, **images()}


def prompted() -> Inputs:
    """The same, where the model wants to know which tokens are the prompt's."""
    return {**question(), "token_type_ids": torch.zeros(2, 7, dtype=torch.long)}


ENCODERS = [
    hf("bert", "bert", "BertForMaskedLM", "BertConfig", **WIDE),
    hf("roberta", "roberta", "RobertaForMaskedLM", "RobertaConfig", **WIDE, pad_token_id=1),
    hf("electra", "electra", "ElectraForMaskedLM", "ElectraConfig", **WIDE, embedding_size=16),
    hf(
        "distilbert",
        "distilbert",
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        vocab_size=61,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=64,
    ),
    hf("albert", "albert", "AlbertForMaskedLM", "AlbertConfig", **WIDE, embedding_size=16),
    hf(
        "deberta-v2",
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        **WIDE,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    hf(
        "modernbert",
        "modernbert",
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        **WIDE,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=4,
    ),
]
BART = {"vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
SEQ2SEQ = [
    hf("t5", "t5", "T5ForConditionalGeneration", "T5Config", both, **T5),
    hf("t5-gated", "t5", "T5ForConditionalGeneration", "T5Config", both, **T5, feed_forward_proj="gated-gelu"),
    hf("mt5", "t5", "MT5ForConditionalGeneration", "MT5Config", both, **T5),
    hf("bart", "bart", "BartForConditionalGeneration", "BartConfig", both, **BART),
    hf("mbart", "mbart", "MBartForConditionalGeneration", "MBartConfig", both, **BART),
    hf("marian", "bart", "MarianMTModel", "MarianConfig", both, **BART),
    hf("pegasus", "mbart", "PegasusForConditionalGeneration", "PegasusConfig", both, **BART),
]
CLIP_TEXT = {**WIDE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = [
    hf("vit", "vit", "ViTForImageClassification", "ViTConfig", images, **VIT),
    hf("deit", "deit", "DeiTForImageClassification", "DeiTConfig", images, **VIT),
    hf("beit", "beit", "BeitForImageClassification", "BeitConfig", images, **VIT, use_relative_position_bias=True),
    hf(
        "dinov2",
        "dinov2",
        "Dinov2ForImageClassification",
        "Dinov2Config",
        images,
        hidden_size=32,
        mlp_ratio=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        **IMAGES,
    ),
    hf(
        "swin",
        "swin",
        "SwinForImageClassification",
        "SwinConfig",
        images,
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=4,
    ),
    hf(
        "convnext",
        "convnext",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        images,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        num_stages=2,
        patch_size=2,
    ),
    hf(
        "resnet",
        "resnet",
        "ResNetForImageClassification",
        "ResNetConfig",
        images,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        embedding_size=8,
        layer_type="basic",
    ),
    hf("clip", "clip", "CLIPModel", "CLIPConfig", pairs, text_config=CLIP_TEXT, vision_config=VIT, projection_dim=16),
    hf("siglip", "clip", "SiglipModel", "SiglipConfig", pairs, text_config=CLIP_TEXT, vision_config=VIT),
    hf(
        "llava",
        "llava",
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        question,
        image_token_index=60,
        text_config={"model_type": "llama", **GROUPED},
        vision_config={"model_type": "clip_vision_model", **VIT},
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    ),
    hf(
        "paligemma",
        "llava",
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        prompted,
        image_token_index=60,
        projection_dim=32,
        text_config={"model_type": "gemma", **GROUPED, "head_dim": 16},
        vision_config={"model_type": "siglip_vision_model", **VIT},
    ),
]


def diffuser(name: str, family: str, cls: str, inputs: Callable[[], Inputs], **options: Any) -> Architecture:
    """A diffusers model by class name."""

    def build() -> nn.Module:
        import diffusers

        return seeded(lambda: getattr(diffusers, cls)(**options))

    return Architecture(name, family, build, inputs)


def noised(**more: torch.Tensor) -> Callable[[], Inputs]:
    return lambda: {"sample": noise(2, 2, 8, 8), "timestep": torch.tensor([3, 7]), **more}


DIFFUSION = [
    diffuser("unet2d", "unet", "UNet2DModel", noised(), **LATENTS, block_out_channels=(8, 16), layers_per_block=1,
             down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
             attention_head_dim=4),
    diffuser("unet2d-condition", "unet", "UNet2DConditionModel", noised(encoder_hidden_states=noise(2, 5, 12)),
             **LATENTS, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2,
             down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
    diffuser("dit", "dit", "DiTTransformer2DModel",
             lambda: {"hidden_states": noise(2, 2, 8, 8), "timestep": torch.tensor([3, 7]),
                      "class_labels": torch.tensor([1, 4])},
             num_attention_heads=4, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=2, sample_size=8,
             patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4),
    diffuser("autoencoder-kl", "autoencoder", "AutoencoderKL", lambda: {"sample": noise(2, 3, 16, 16)},
             block_out_channels=(8, 16), layers_per_block=1, latent_channels=2, norm_num_groups=4,
             down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
]  # fmt: skip
ALL = [*DECODERS, *EXPERTS, *STATES, *ENCODERS, *SEQ2SEQ, *VISION, *DIFFUSION]
