"""Families of sound."""

from __future__ import annotations

from typing import Any

import diffusers as d
import transformers as t

from tests.pipelines import _unet

from . import parts
from .family import family
from .parts import BETAS, HIDDEN
from .unets import ddim


def oobleck(channels: int) -> Any:
    """The decoder of Stable Audio: two samples for each latent."""
    return d.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=channels,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )


@family("stable-audio", "StableAudioPipeline", "audio", audio_end_in_s=2.0)
def _stable_audio() -> Any:
    transformer = d.StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=3,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=2 * 16,
        cross_attention_input_dim=16,
    )
    projection = d.StableAudioProjectionModel(text_encoder_dim=HIDDEN, conditioning_dim=16, min_value=0, max_value=32)
    return d.StableAudioPipeline(
        vae=oobleck(3),
        **parts.t5_pair(),
        projection_model=projection,
        transformer=transformer,
        scheduler=d.EDMDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction", sigma_data=1.0),
    )


def mel_vae() -> Any:
    """Latents of a spectrogram of 8 bins: factor 2."""
    return d.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )


def vocoder() -> Any:
    """From spectrograms to sound."""
    return t.SpeechT5HifiGan(
        t.SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
            normalize_before=False,
        )
    )


def clap() -> Any:
    """CLAP, of which AudioLDM uses the text half."""
    text = {
        "vocab_size": 64,
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": HIDDEN,
        "max_position_embeddings": 80,
        "pad_token_id": 0,
    }
    audio = {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "num_hidden_layers": 1,
        "hidden_size": 192,
        "projection_dim": HIDDEN,
        "patch_size": 2,
        "patch_stride": 2,
        "patch_embed_input_channels": 4,
    }
    return t.ClapConfig(text_config=text, audio_config=audio, projection_dim=HIDDEN)


@family("audioldm", "AudioLDMPipeline", "audio", audio_length_in_s=0.004)
def _audioldm() -> Any:
    unet = _unet((8, 16), class_embed_type="simple_projection", projection_class_embeddings_input_dim=HIDDEN,
                 class_embeddings_concat=True)  # fmt: skip
    config = clap()
    return d.AudioLDMPipeline(
        vae=mel_vae(),
        text_encoder=t.ClapTextModelWithProjection(config.text_config),
        tokenizer=parts.words(77),
        unet=unet,
        scheduler=ddim(),
        vocoder=vocoder(),
    )


_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LETTERS = {token: number for number, token in enumerate([*_SPECIAL, *"Ġ▁abcdefghijklmnopqrstuvwxyz"])}


@family("audioldm2", "AudioLDM2Pipeline", "audio", audio_length_in_s=0.004, max_new_tokens=4)
def _audioldm2() -> Any:
    unet = d.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(HIDDEN, HIDDEN),
    )
    language = t.GPT2Config(n_embd=HIDDEN, n_head=2, n_layer=1, vocab_size=64, n_positions=200)
    sizes = {"text_encoder_dim": HIDDEN, "text_encoder_1_dim": HIDDEN, "langauge_model_dim": HIDDEN}
    return d.AudioLDM2Pipeline(
        vae=mel_vae(),
        text_encoder=t.ClapModel(clap()),
        text_encoder_2=parts.t5(),
        projection_model=d.AudioLDM2ProjectionModel(**sizes),
        language_model=t.GPT2LMHeadModel(language),
        tokenizer=t.RobertaTokenizer(vocab=LETTERS, merges=[], model_max_length=77),
        tokenizer_2=t.T5Tokenizer(vocab=[(token, 0.0) for token in LETTERS], extra_ids=0, model_max_length=32),
        feature_extractor=t.ClapFeatureExtractor(hop_length=7900),
        unet=unet,
        scheduler=d.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1),
        vocoder=vocoder(),
    )


@family("ace-step", "AceStepPipeline", "audio", lyrics="music on a clock", audio_duration=0.4, max_text_length=32)
def _ace_step() -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    shared = {"hidden_size": 32, "intermediate_size": 32, "rope_theta": 1e4, "sliding_window": 16, **heads}
    transformer = d.AceStepTransformer1DModel(
        num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, **shared
    )
    condition = d.pipelines.ace_step.AceStepConditionEncoder(
        text_hidden_dim=HIDDEN,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **shared,
    )
    pool = {"audio_acoustic_hidden_dim": 8, "pool_window_size": 2, "num_attention_pooler_hidden_layers": 1}
    fsq = {"fsq_dim": 32, "fsq_input_levels": [4, 4, 4], "fsq_input_num_quantizers": 1}
    return d.AceStepPipeline(
        vae=oobleck(8),
        text_encoder=parts.qwen3(),
        tokenizer=parts.words(),
        transformer=transformer,
        condition_encoder=condition,
        scheduler=d.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=d.pipelines.ace_step.AceStepAudioTokenizer(**shared, **pool, **fsq),
        audio_token_detokenizer=d.pipelines.ace_step.AceStepAudioTokenDetokenizer(**shared, **pool),
    )


@family("longcat-audio", "LongCatAudioDiTPipeline", "audio", audio_duration_s=0.1)
def _longcat_audio() -> Any:
    transformer = d.LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=HIDDEN, latent_dim=8, text_conv=False
    )
    vae = d.LongCatAudioDiTVae(
        in_channels=1,
        channels=16,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2,
        sample_rate=24000,
    )
    return d.LongCatAudioDiTPipeline(
        vae=vae, text_encoder=parts.umt5(), tokenizer=parts.t5_tokenizer(), transformer=transformer
    )
