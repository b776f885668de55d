"""Makes a transformers configuration small by the names of its fields, without knowing the model.

All widths are divided by one factor and the numbers of heads stay, so that what has to fit together still does (head
sizes, rotary sections, group counts). Depths, vocabularies, experts and waveform or frame counts get small values of
their own. What refers to depth by index is scaled along.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

#: Whole names that count blocks, and the number that they get (distinct ones tell encoder from decoder).
DEPTHS = {
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_blocks": 4,
    "depth": 3,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "num_encoder_layers": 3,
    "num_decoder_layers": 4,
    "encoder_num_hidden_layers": 3,
    "decoder_num_hidden_layers": 4,
    "encoder_depth": 3,
    "decoder_depth": 2,
    "n_encoder_layers": 3,
    "n_decoder_layers": 4,
    "num_encoder_block": 3,
    "l_layers": 4,
    "r_layers": 2,
    "x_layers": 3,
    "aligner_num_add_layers": 2,
    "num_codebooks": 4,
}
_STAGED = re.compile(r"depths?|(num_block_repeats|blocks_per_stage|layers_per_stage|stage_num_blocks)|block_sizes")
_WIDTH = re.compile(
    r"(^|_)(hidden|width|channels?|dims?|d_model|d_ff|d_kv|d_head|d_inner|embd|n_inner|units|filters|mrope_section|section"
    r"|intermediate|ffn|embed|embedding_size|mlp|proj_size|projection_dim|emb|head_dim|features|codevector|latent)(_|\d|$)"
    r"|hidden_sizes?|d_model|d_kv|d_ff|dim$|_dim_|intermediate_size|out_hidden|embedding_size"
)
_NOT_WIDTH = re.compile(
    r"num_|n_heads|heads|layers?$|layers_|blocks|depth|kernel|stride|token|_id$|_ids$|index|indices|prob|dropout|ratio"
    r"|factor|mult|act|size_limit|position_embeddings|num_channels|^in_channels|in_chans|audio_channels|patch|image"
    r"|window|pool|lags|n_mels|mel|divisor|type|pattern|frames|length|std|range|scale|init|loss|2d_pos|cost|rate"
    r"|^channels$|conv_dim$|stem_channels_in|vocab|expand|time_features|real_features|_group|group_|_groups|stages"
    r"|pos_emb|bins|state_embed|features_only|input_channels"
)
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
}
_CAPPED = {
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "max_source_positions": 128,
    "max_target_positions": 512,
    "num_queries": 5,
    "num_object_queries": 5,
    "num_frames": 4,
    "num_static_categorical_features": 0,
    "decoder_start_token_id": 2,
    "codebook_size": 64,
    "num_embeddings": 64,
    "num_codevectors_per_group": 16,
    "num_denoising": 0,
    "num_residual_layers": 2,
    "max_2d_position_embeddings": 128,
    "train_num_points": 32,
    "num_query_tokens": 4,
    "num_latents": 8,
}
_SPECIAL = {"pad": 0, "bos": 1, "eos": 2, "sep": 3, "cls": 4, "unk": 3, "mask": 4, "decoder_start": 2}
VOCABULARY = 160
_TAPS = ("_out_indices", "_out_features")
_QUIET = re.compile(r"dropout|drop_path|layerdrop|drop_rate|stochastic_depth|attention_probs|_drop$|pdrop$")


class Shrink:
    """One attempt at a small configuration.

    Args:
        factor: What widths are divided by.
        fixes: Values for single fields, by name; a nested map is for a sub-configuration.
    """

    def __init__(self, factor: int, fixes: Mapping[str, Any] | None = None) -> None:
        self.factor = factor
        self.fixes = dict(fixes or {})
        self._special: dict[str, int] = {}

    def __call__(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """A small configuration of the same class."""
        small = type(config)(**self._settings(config, self.fixes, ""))
        return small

    def _settings(self, config: PreTrainedConfig, fixes: Mapping[str, Any], role: str) -> dict[str, Any]:
        fields = [f for f in getattr(type(config), "__dataclass_fields__", {}) if f in config.__dict__ or f in fixes]
        reverse = {new: old for old, new in (config.attribute_map or {}).items()}
        # Some models read what their configuration has no field for.
        settings: dict[str, Any] = {k: v for k, v in fixes.items() if k not in config.__dict__ and k not in fields}
        changed: dict[int, int] = {}
        for name in fields:
            if name in {"transformers_version", "architectures", "id2label", "label2id", "dtype", "torch_dtype"}:
                continue
            value = config.__dict__.get(name)
            if name in fixes and not (isinstance(fixes[name], Mapping) and isinstance(value, PreTrainedConfig)):
                settings[name] = fixes[name]
            elif isinstance(value, PreTrainedConfig):
                sub = fixes.get(name, {})
                inner = self._settings(value, sub, name)
                settings[name] = type(value)(**inner)
            elif value is None:
                settings[name] = self._missing(name, config)
            else:
                settings[name] = self.value(name, reverse.get(name, name), value, role)
            if self._depth(name, reverse.get(name, name), value) and isinstance(settings[name], int):
                staged = [v for k, v in config.__dict__.items() if _STAGED.fullmatch(k) and isinstance(v, list | tuple)]
                if any(len(v) == value for v in staged):
                    settings[name] = value  # the number of stages: each of them is made shallower
                changed[value] = settings[name]
        for name, value in settings.items():
            if name not in fixes:
                settings[name] = _along(name, value, changed)
        taps = config.__dict__.get("_out_indices")
        if taps is not None:
            # The private names are set again from the public ones, which name stages by depth.
            settings = {name: value for name, value in settings.items() if name not in _TAPS}
            settings["out_indices"] = _taps(taps, changed)
        settings |= {name: value for name, value in fixes.items() if name not in fields}
        size, patch = settings.get("image_size"), settings.get("patch_size")
        plain = type(size) is int and type(patch) is int and not {"image_size"} & set(fixes)
        if plain and "window_size" not in settings and size % patch == 0 and size > 8 * patch:
            settings["image_size"] = 8 * patch
        _rotary(type(config), settings, fixes)
        text, vision = settings.get("text_config"), settings.get("vision_config")
        out = "out_hidden_size" if hasattr(vision, "out_hidden_size") else "hidden_size"
        if getattr(text, "hidden_size", None) and (out != "hidden_size" or getattr(vision, "embed_dim", None)):
            # In some default configurations the tower does not end in the width of the text.
            setattr(vision, out, fixes.get("vision_config", {}).get(out, text.hidden_size))
        return settings

    def _missing(self, name: str, config: PreTrainedConfig) -> Any:
        """Values for fields without a default that models cannot be built without."""
        heads, width = config.__dict__.get("num_attention_heads"), config.__dict__.get("hidden_size")
        if name == "head_dim" and type(heads) is int and type(width) is int and width % heads == 0:
            return self._narrow(width) // heads or None
        return {"vocab_size": VOCABULARY, "pad_token_id": 0, "prediction_length": 4}.get(name)

    def _depth(self, name: str, known: str, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and (name in DEPTHS or known in DEPTHS)

    def value(self, name: str, known: str, value: Any, role: str) -> Any:
        """The small value of one field; ``known`` is the name that transformers maps it to."""
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return value
        if isinstance(value, float) and _QUIET.search(name):
            return 0.0
        if name.endswith(("token_id", "token_index", "token_ids")) or name in {"mask_index", "image_token"}:
            return self._token(name, value)
        if self._depth(name, known, value):
            small = DEPTHS.get(name, DEPTHS.get(known, 4))
            if name in {"num_hidden_layers", "num_layers", "n_layers"} and re.search("vision|audio|image", role):
                small = 3
            return min(value, small)
        if _STAGED.fullmatch(name) and isinstance(value, list | tuple):
            return type(value)(min(v, 2 + i % 2) if isinstance(v, int) else v for i, v in enumerate(value))
        if "vocab" in name and isinstance(value, int) and value > VOCABULARY and "type" not in name:
            return VOCABULARY
        if name in _EXPERTS and isinstance(value, int):
            return min(value, _EXPERTS[name])
        if name in _CAPPED and isinstance(value, int):
            return min(value, _CAPPED[name])
        if isinstance(value, dict):
            return {k: self._section(v) if "section" in str(k) else v for k, v in value.items()}
        if _WIDTH.search(name) and not _NOT_WIDTH.search(name):
            return self._narrow(value)
        return value

    def _narrow(self, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, list | tuple) and len(value) > 2 and value[0] == 3:
            return type(value)([3, *self._narrow(value[1:])])  # from the colours of an image on
        if isinstance(value, int):
            return value // self.factor if value % self.factor == 0 and value >= 2 * self.factor else value
        if isinstance(value, list | tuple) and value and all(isinstance(v, int | list | tuple) for v in value):
            small = [self._narrow(v) for v in value]
            # All or nothing: a list that is divided in part no longer increases.
            flat = [(v, s) for v, s in zip(value, small, strict=True) if isinstance(v, int)]
            return value if any(v == s for v, s in flat) else type(value)(small)
        return value

    def _section(self, value: Any) -> Any:
        """Rotary sections: their sum has to follow the head size."""
        if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
            return value
        small = [v // self.factor for v in value]
        small[0] += sum(value) // self.factor - sum(small)
        return type(value)(small)

    def _token(self, name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)([self._token(name, value[0])]) if value else value
        if not isinstance(value, int) or value < 0:
            return value
        for word, small in _SPECIAL.items():
            if name.startswith(f"{word}_token") and value >= VOCABULARY:
                return small
        if value < 10:
            return value
        # Different tokens keep different numbers, from the end of the vocabulary, in all parts of the model.
        key = str(value)
        self._special.setdefault(key, VOCABULARY - 1 - len(self._special))
        return self._special[key]


def _rotary(kind: type[PreTrainedConfig], settings: dict[str, Any], fixes: Mapping[str, Any]) -> None:
    """Heads that two axes can share, and rotary sections that add up to half of the part of a head that is rotated."""
    heads = next((n for n in ("num_attention_heads", "num_heads") if type(settings.get(n)) is int), "")
    width = settings.get("embed_dim") or settings.get("hidden_size")
    if not heads or type(width) is not int:
        return
    count = settings[heads]
    if getattr(kind, "default_rope_type", "") == "axial" and not settings.get("head_dim") and heads not in fixes:
        count = next((n for n in range(count, 1, -1) if width % (4 * n) == 0), count)
        settings[heads] = count
        groups = settings.get("num_key_value_heads")
        if type(groups) is int and count % groups:
            settings["num_key_value_heads"] = count // 2 if count % 2 == 0 else count
    rope = settings.get("rope_parameters")
    wanted = "mrope_section" in (getattr(kind, "ignore_keys_at_rope_validation", None) or ())
    if not wanted or not isinstance(rope, dict) or "rope_theta" not in rope or "rope_parameters" in fixes:
        return
    part = rope.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1
    half = int((settings.get("head_dim") or width // count) * part) // 2
    axes = len(rope.get("mrope_section") or "thw")
    # The first two stay alike: height and width take turns in some models.
    if half >= axes:
        sections = [half // axes] * (axes - 1)
        settings["rope_parameters"] = {**rope, "mrope_section": [*sections, half - sum(sections)]}


def _along(name: str, value: Any, changed: Mapping[int, int]) -> Any:
    """Shorten what has one entry for each block, and scale what names blocks by index."""
    for old, new in changed.items():
        if old == new:
            continue
        if isinstance(value, list | tuple) and len(value) == old and old > 1:
            kinds = list(dict.fromkeys(map(str, value)))
            if len(kinds) > 1 and len(kinds) <= new:
                return type(value)(_each_kind(list(value), new))
            return type(value)(value[:new])
        indices = isinstance(value, list | tuple) and value and all(type(v) is int for v in value)
        if (
            indices
            and re.search("index|indices|indexes|layer_ids|_layers$|ind$|attention_layers", name)
            and max(value) > new
        ):
            return type(value)(sorted({min(v * new // old, new) if v >= 0 else max(v, -new) for v in value}))
        if indices and re.search("vision_feature_layer", name):
            return type(value)([max(v, -new) for v in value])
    return copy.copy(value)


def _taps(indices: Any, changed: Mapping[int, int]) -> list[int]:
    """As many outputs of a shallower backbone, evenly spread, or else the last ones."""
    for old, new in changed.items():
        if max(indices, default=0) > new:
            spread = sorted({-(-v * new // old) for v in indices})
            return spread if len(spread) == len(indices) else list(range(new + 1))[-len(indices) :]
    return list(indices)


def _each_kind(values: list[Any], count: int) -> list[Any]:
    """``count`` entries that keep the order and hold every kind that there is."""
    first = {str(v): i for i, v in reversed(list(enumerate(values)))}
    chosen = sorted(first.values())[:count]
    for i in range(len(values)):
        if len(chosen) >= count:
            break
        if i not in chosen:
            chosen.append(i)
    return [values[i] for i in sorted(chosen)]
