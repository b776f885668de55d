"""Settings, inputs, counts and reasons of single audio classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def _only(make: Callable[[Any], dict[str, Any]]) -> dict[str, Callable[[Any], Any]]:
    """These inputs and no others."""
    return {"all": make}


def _codec(maker: Any) -> dict[str, Any]:
    """A wave and the spectrum of it, as the two encoders of a semantic codec want them."""
    semantic = maker.config.semantic_model_config
    return {
        "input_values": torch.randn(1, 1, 3840),
        "input_features": torch.rand(1, 12, semantic.feature_projection_input_dim),
    }


def _series(maker: Any) -> dict[str, Any]:
    length = 4 * maker.config.patch_length
    return {
        "past_values": torch.rand(2, length),
        "past_values_padding": torch.zeros(2, length),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    }


def _codebooks(maker: Any) -> dict[str, Any]:
    """A text token and one of each codebook for every step."""
    return {"input_ids": torch.randint(5, 60, (2, 6, maker.config.num_codebooks + 1))}


def _latents(maker: Any) -> dict[str, Any]:
    return {"latents": torch.randn(2, maker.config.hidden_size, 6)}


def _described(mask: str) -> Callable[[Any], dict[str, Any]]:
    """A spectrum with its mask, and text with a place for every vector that the tower says it makes of it."""

    def make(maker: Any) -> dict[str, Any]:
        config = maker.config
        times = 2 * config.audio_config.max_source_positions
        seen = torch.ones(2, times, dtype=torch.long)
        _, lengths = maker.model.base_model.audio_tower._get_feat_extract_output_lengths(seen.sum(-1))
        places = torch.full((2, int(lengths[0])), config.audio_token_id)
        return {
            "input_ids": torch.cat([places, maker.ids(5)], 1),
            "input_features": torch.rand(2, config.audio_config.num_mel_bins, times),
            mask: seen,
        }

    return make


def _labelled(maker: Any) -> dict[str, Any]:
    """Text and everything that is predicted from it, without which there is no training mode."""
    mels = getattr(maker.config, "model_config", maker.config).num_mel_bins
    return {
        "input_ids": maker.ids(8),
        "duration_labels": torch.full((2, 8), 2),
        "pitch_labels": torch.rand(2, 8, 1),
        "energy_labels": torch.rand(2, 8, 1),
        "spectrogram_labels": torch.rand(2, 16, mels),
    }


def _codes(maker: Any) -> dict[str, Any]:
    """One row of tokens for each codebook, and what an encoder made of the text."""
    config = maker.config
    return {
        "input_ids": torch.randint(5, 60, (2 * config.num_codebooks, 6)),
        "encoder_hidden_states": torch.rand(2, 5, config.hidden_size),
    }


def _conversation(maker: Any) -> dict[str, Any]:
    """Text and a wave, with a place in the text for every frame of it, and the frames as labels."""
    config, wave = maker.config, torch.randn(2, 1, 3840)
    frames = maker.model.codec_model.encode(wave).audio_codes.shape[-1]
    ids = torch.cat([maker.ids(5), torch.full((2, frames), config.audio_token_id)], 1)
    return {
        "input_ids": ids,
        "input_values": wave,
        "input_values_cutoffs": torch.full((2, 1), wave.shape[-1]),
        "labels": torch.where(ids == config.audio_token_id, ids, -100),
    }


def _streamed(maker: Any) -> dict[str, Any]:
    """As many tokens as the encoder makes vectors: they are added up, not put in one row."""
    spectrum = torch.rand(2, maker.config.audio_config.num_mel_bins, 128)
    tokens = maker.model.get_audio_features(spectrum, return_dict=True).pooler_output.shape[1]
    return {"input_ids": maker.ids(tokens), "input_features": spectrum}


_TINY_VIT = {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 3, "img_size": 64}, "num_classes": 128}
_NARROW = {"num_filters": 4}
_MIMI = {"upsample_groups": 1, "num_quantizers": 4, "num_hidden_layers": 3}

CONFIGS: dict[str, Mapping[str, Any]] = {
    "csm": {
        "num_codebooks": 4,
        "codec_config": _MIMI,
        "depth_decoder_config": {"num_codebooks": 4, "num_hidden_layers": 3},
    },
    "kyutai_speech_to_text": {"codec_config": _MIMI, "audio_pad_token_id": 64, "codebook_vocab_size": 64},
    "mimi_decoder": {"upsample_groups": 1},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 1},
    # The width of the last of four stages, each twice as wide as the one before.
    "clap": {"audio_config": {"patch_embeds_hidden_size": 16, "hidden_size": 128}},
    # Together with the width of the semantic model that of the codes.
    "xcodec": {"codebook_dim": None, "acoustic_model_config": {"hidden_size": 32}},
    "moonshine_streaming": {"num_key_value_heads": 8},
    # The defaults of the two parts do not fit together.
    "granite_speech": {"projector_config": {"encoder_hidden_size": 64}},
    "granite_speech_plus": {"projector_config": {"encoder_hidden_size": 64}},
    "qwen3_asr": {"audio_config": {"output_dim": 128}},
    # Twice as many with every stage.
    "vibevoice_acoustic_tokenizer": _NARROW,
    "vibevoice": {"audio_config": _NARROW, "semantic_model_config": _NARROW},
    "vibevoice_asr": {"acoustic_tokenizer_encoder_config": _NARROW, "semantic_tokenizer_encoder_config": _NARROW},
    "voxtral": {"audio_token_id": 150},
    "pe_video_encoder": {"vision_config": _TINY_VIT},
}
INPUTS: dict[str, Mapping[str, Callable[[Any], Any]]] = {
    "NeuCodecModel": _only(_codec),
    "Xcodec2Model": _only(_codec),
    "XcodecModel": _only(lambda m: {"input_values": torch.randn(2, 1, 3840)}),
    "TimesFmModel": _only(_series),
    "KyutaiSpeechToTextModel": _only(_codebooks),
    "KyutaiSpeechToTextForConditionalGeneration": _only(_codebooks),
    "MimiDecoderModel": _only(_latents),
    "PocketTTSAudioTokenizerDecoderModel": _only(_latents),
    "VoxtralRealtimeModel": _only(_streamed),
    "VoxtralRealtimeForConditionalGeneration": _only(_streamed),
    "PerceiverModel": _only(lambda m: {"inputs": torch.rand(2, 12, m.config.d_model)}),
    # Mel frames with their differences, in pairs.
    "granite_speech5_encoder": {"input_features": lambda m: torch.rand(2, 64, 4 * m.config.num_mel_bins)},
    "granite_speech5_ctc": {"input_features": lambda m: torch.rand(2, 64, 4 * m.config.encoder_config.num_mel_bins)},
    # Several mel frames stacked into one of low rate.
    "fun_asr_nano_encoder": {
        "input_features": lambda m: torch.rand(2, 24, m.config.num_mel_bins * m.config.num_stacked_frames),
        "input_features_mask": lambda m: torch.ones(2, 24, dtype=torch.long),
    },
    "Gemma3nAudioEncoder": _only(
        lambda m: {
            "audio_mel": torch.rand(2, 64, m.config.input_feat_size),
            "audio_mel_mask": torch.zeros(2, 64, dtype=torch.bool),
        }
    ),
    "ClapModel": _only(
        lambda m: {"input_ids": m.ids(8), "input_features": torch.rand(2, 1, 256, 64), "is_longer": torch.zeros(2, 1)}
    ),
    "SpeechEncoderDecoderModel": _only(lambda m: {"input_values": torch.randn(2, 3840), "decoder_input_ids": m.ids(6)}),
    # Without its pre- and post-nets it takes hidden states.
    "SpeechT5Model": _only(
        lambda m: {
            "input_values": torch.rand(2, 12, m.config.hidden_size),
            "decoder_input_values": torch.rand(2, 6, m.config.hidden_size),
        }
    ),
    "VibeVoiceAcousticTokenizerEncoderModel": _only(lambda m: {"hidden_states": torch.randn(2, 1, 3200)}),
    "VibeVoiceAcousticTokenizerDecoderModel": _only(
        lambda m: {"hidden_states": torch.randn(2, m.config.hidden_size, 3)}
    ),
    "CsmForConditionalGeneration": _only(_conversation),
    "ClvpModelForConditionalGeneration": _only(
        lambda m: {"input_ids": m.ids(8), "input_features": torch.rand(2, m.config.decoder_config.feature_size, 64)}
    ),
    "fun_asr_nano": {
        "input_features": lambda m: torch.rand(
            m.batch, 24, m.config.audio_config.num_mel_bins * m.config.audio_config.num_stacked_frames
        ),
        "input_features_mask": lambda m: torch.ones(m.batch, 24, dtype=torch.long),
    },
    "moss_transcribe_diarize": {
        "input_features": lambda m: torch.rand(m.batch, m.config.audio_config.num_mel_bins, 256),
        "input_features_mask": lambda m: torch.ones(m.batch, 256, dtype=torch.long),
        "padding_mask": lambda m: torch.ones(m.batch, 4000, dtype=torch.long),
    },
    "musicflamingo": _only(_described("input_features_mask")),
    "qwen2_audio": _only(_described("feature_attention_mask")),
    "fastspeech2_conformer": _only(_labelled),
    "fastspeech2_conformer_with_hifigan": _only(_labelled),
    # The longer the text, the longer the wave: it is made in full.
    "vits": _only(lambda m: {"input_ids": torch.randint(5, 30, (2, 5))}),
    "musicgen": _only(_codes),
    "musicgen_melody": _only(_codes),
    # How far a stream is delayed, which the model around this one embeds.
    "VoxtralRealtimeTextModel": {"t_cond": lambda m: torch.rand(1, 1, m.config.hidden_size)},
}
FACTORS: dict[str, tuple[int, ...]] = {"granite_speech": (16,), "granite_speech_plus": (16,), "qwen3_asr": (16,)}
REASONS: dict[str, str] = {
    "HiggsAudioV2TokenizerModel": "needs torchaudio, which is not installed here",
    "BarkModel": "has no forward pass of its own: `generate` calls its three transformers and its codec one by one",
}
