"""Inputs for one forward pass of a transformers model, from the arguments of its ``forward`` and its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

Inputs = dict[str, Any]


def configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and all configurations in it, outermost first."""
    yield config
    for value in list(config.__dict__.values()):
        if isinstance(value, PreTrainedConfig):
            yield from configs(value)


def setting(config: PreTrainedConfig, *names: str, default: Any = None, role: str = "") -> Any:
    """The first of these fields that the configuration, or one in it, has."""
    candidates = list(configs(config))
    if role:
        parts = [v for c in candidates for k, v in c.__dict__.items() if isinstance(v, PreTrainedConfig) and role in k]
        candidates = [*(c for part in parts for c in configs(part)), *candidates]
    for part in candidates:
        for name in names:
            try:
                value = getattr(part, name, None)
            except Exception:
                value = None
            if value is not None and value != []:
                return value
    return default


def _integer(value: Any, default: int) -> int:
    if isinstance(value, list | tuple):
        value = value[-1] if value else default
    if isinstance(value, Mapping):
        value = value.get("height", default)
    return int(value) if isinstance(value, int | float) else default


class Maker:
    """Makes inputs for one model.

    Args:
        model: The model.
        fixed: Makers for single arguments that the generic ones do not fit.
    """

    def __init__(self, model: nn.Module, fixed: Mapping[str, Callable[[Any], Any]] | None = None) -> None:
        self.model = model
        self.config: Any = model.config
        self.fixed = dict(fixed or {})
        signature = inspect.signature(type(model).forward).parameters.values()
        self.names = [p.name for p in signature][1:]
        self.required = {
            p.name for p in signature if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        } - {"self"}
        self.batch = 2
        #: Sounds: spectra with the mel bins first and waves with a channel, and masks of what is given.
        self.mel_first = self.masks = False

    def attempts(self) -> Iterator[tuple[str, Inputs]]:
        """Sets of inputs to try, those that reach most of the model first."""
        if self.fixed.get("all"):
            yield "given", self.fixed["all"](self)
            return
        layouts = ((False, False), (True, True), (True, False), (False, True))
        for layout in layouts if _SOUND & set(self.names) else layouts[:1]:
            self.mel_first, self.masks = layout
            yield from self._attempts()

    def _attempts(self) -> Iterator[tuple[str, Inputs]]:
        for builder in (
            self.everything,
            self.text_and_media,
            self.text_and_images,
            self.text_and_plain_images,
            self.required_only,
            self.text_only,
            self.tokens_only,
            self.media_only,
        ):
            for batch in (2, 1):
                self.batch = batch
                try:
                    found = builder()
                except Exception as error:
                    self.problem = f"{type(error).__name__}: {error}"
                    continue
                if found:
                    yield builder.__name__.strip("_"), {**found, **{k: v(self) for k, v in self.fixed.items()}}

    # Sets of inputs

    def everything(self) -> Inputs:
        main = {n: self.make(n) for n in self.names if n in MAKERS and n in _MAIN | self.required}
        if "input_ids" in main and self._media(main):
            return {}
        return self._masked({k: v for k, v in main.items() if v is not None})

    def text_and_media(self) -> Inputs:
        return self._with_media(_MAIN | {"image_sizes"})

    def text_and_images(self) -> Inputs:
        """Without videos, which mostly go through the same tower."""
        return self._with_media((_MAIN | {"image_sizes"}) - {"pixel_values_videos", "video_grid_thw"})

    def text_and_plain_images(self) -> Inputs:
        """Without their sizes too, which not every tower can be told."""
        return self._with_media(_MAIN - {"pixel_values_videos", "video_grid_thw"})

    def _with_media(self, wanted: set[str]) -> Inputs:
        if "input_ids" not in self.names:
            return {}
        names = [n for n in self.names if n in MAKERS and n in wanted | self.required]
        found = {n: self.make(n) for n in names if n not in {"input_ids"} and "decoder" not in n}
        found = self._masked({k: v for k, v in found.items() if v is not None})
        found.update({k: v(self) for k, v in self.fixed.items() if k != "input_ids"})
        if not self._media(found):
            return {}
        ids = self.ids(12)
        kinds = torch.zeros_like(ids)
        for number, (kind, sources) in enumerate(_PLACES.items(), 1):
            token = setting(self.config, f"{kind}_token_id", f"{kind}_token_index")
            try:
                each = self._features(kind, found) // self.batch if any(n in found for n in sources) else 0
            except Exception:
                # Some models name a kind that the configuration gives them no tower for.
                found = {k: v for k, v in found.items() if k not in sources}
                if not self._media(found):
                    raise
                continue
            if each and token is not None:
                ids = torch.where(ids == token, token + 1, ids)
                row = torch.full((self.batch, each), token)
                around = [self._mark(kind, *ends) for ends in (("start", "bos"), ("end", "eos"))]
                before, after = [row.new_full((self.batch, len(mark)), *mark or [0]) for mark in around]
                ids = torch.cat([ids[:, :3], before, row, after, ids[:, 3:]], 1)
                marks = [torch.zeros_like(before), torch.full_like(row, number), torch.zeros_like(after)]
                kinds = torch.cat([kinds[:, :3], *marks, kinds[:, 3:]], 1)
        found["input_ids"] = ids
        for name in ("bbox", "token_type_ids", "attention_mask"):
            if name in found:
                found[name] = MAKERS[name](self, ids.shape[1])
        if "mm_token_type_ids" in self.names:
            found["mm_token_type_ids"] = kinds.int()
        if "token_type_ids" in self.names and kinds.any():
            found["token_type_ids"] = kinds
        if "decoder_input_ids" in self.names:
            found["decoder_input_ids"] = self.ids(6)
        return found

    def required_only(self) -> Inputs:
        main = getattr(self.model, "main_input_name", None)
        names = self.required | ({main} if isinstance(main, str) and main in self.names else set())
        return {n: self.make(n) for n in self.names if n in names and n in MAKERS}

    def text_only(self) -> Inputs:
        found = {n: self.make(n) for n in self.names if n in {"input_ids", "decoder_input_ids", "bbox"}}
        return found

    def tokens_only(self) -> Inputs:
        return {"input_ids": self.make("input_ids")} if "input_ids" in self.names else {}

    def media_only(self) -> Inputs:
        return {
            n: self.make(n)
            for n in self.names
            if n in MAKERS and n in {"pixel_values", "input_features", "input_values", "pixel_values_videos"}
        }

    def _masked(self, found: Inputs) -> Inputs:
        """With masks of ones over the times of a sound, where those are wanted."""
        if not self.masks:
            return found
        for source, masks in _MASKS.items():
            if source in found:
                times = found[source].shape[-1 if self.mel_first or found[source].dim() == 2 else -2]
                ones = torch.ones(self.batch, times, dtype=torch.long)
                text = {"attention_mask"} if "input_ids" in self.names else set()
                found = {**found, **{name: ones for name in masks if name in self.names and name not in text}}
        return found

    def make(self, name: str) -> Any:
        return MAKERS[name](self, None)

    def _media(self, found: Mapping[str, Any]) -> bool:
        return any(n in found for n in ("pixel_values", "input_features", "input_values", "pixel_values_videos"))

    def _features(self, kind: str, found: Inputs) -> int:
        """How many vectors the model makes of an image or a sound: so many place-holders the text needs."""
        name = f"get_{kind}_features"
        methods = [getattr(m, name) for m in self.model.modules() if hasattr(m, name)]
        # A model around another one may only hand on what it is given, and not name it.
        takes = [(m, found.keys() & inspect.signature(m).parameters.keys()) for m in methods]
        method, accepted = max(takes, key=lambda pair: len(pair[1]), default=(None, set()))
        if not method or not accepted:
            return 0
        with torch.no_grad():
            answer = method(**{k: found[k] for k in accepted})
        named = [getattr(answer, name, None) for name in ("pooler_output", "last_hidden_state")]
        answer = next((part for part in named if part is not None), answer)
        parts = list(answer) if isinstance(answer, list | tuple) else [answer]
        return sum(int(p.numel() // p.shape[-1]) for p in parts if isinstance(p, torch.Tensor))

    def _mark(self, kind: str, *ends: str) -> list[int]:
        """The token before or after the place-holders of an image or a sound, where a model has such a one."""
        names = [f"{part}_{end}_token_id" for end in ends for part in (kind, "vision" if kind != "audio" else kind)]
        token = setting(self.config, *names)
        return [token] if type(token) is int else []

    # Single inputs

    def ids(self, length: int = 16) -> torch.Tensor:
        top = min(_integer(setting(self.config, "vocab_size", default=100), 100), 100)
        ids = torch.randint(5, top, (self.batch, length))
        end = setting(self.config, "eos_token_id")
        if type(end) is int and 0 <= end < top:
            ids[:, -1] = end
        return ids

    def image_size(self) -> int:
        size = _integer(setting(self.config, "image_size", "input_size", role="vision", default=0), 0)
        return size if 16 <= size <= 448 else 64

    def image_shape(self) -> tuple[int, int]:
        """Height and width: a square, save where the configuration gives both."""
        given = setting(self.config, "image_size", role="vision")
        sides = tuple(given) if isinstance(given, list | tuple) else ()
        if len(sides) == 2 and all(type(side) is int and 16 <= side <= 448 for side in sides):
            return sides
        return self.image_size(), self.image_size()

    def channels(self) -> int:
        return _integer(setting(self.config, "num_channels", "in_channels", "in_chans", role="vision", default=3), 3)

    def patch_size(self) -> int:
        return _integer(setting(self.config, "patch_size", "spatial_patch_size", role="vision", default=14), 14)

    def pixels(self, _: Any = None) -> torch.Tensor:
        channels = min(self.channels(), 4)
        if "image_grid_thw" in self.names or "grid_thw" in self.names or "image_grid_hw" in self.names:
            temporal = _integer(setting(self.config, "temporal_patch_size", role="vision", default=1), 1)
            return torch.rand(self.batch * 16, channels * temporal * self.patch_size() ** 2)
        size = self.image_shape()
        name = type(self.model).__name__.lower()
        frames = _integer(setting(self.config, "num_frames", default=0), 0)
        if frames and any(w in name for w in ("video", "timesformer", "vivit", "xclip", "vjepa")):
            return torch.rand(self.batch, frames, channels, *size)
        return torch.rand(self.batch, channels, *size)

    def sound(self, _: Any = None) -> torch.Tensor:
        mels = setting(self.config, "num_mel_bins", "feature_size", role="audio")
        if (
            setting(self.config, "conv_stride", "upsampling_ratios", "downsampling_ratios", "strides") is not None
            or mels is None
        ):
            channels = _integer(setting(self.config, "audio_channels", default=0), 0)
            wave = [self.batch, channels, 3840] if channels else [self.batch, 3840]
            if self.mel_first:
                wave = [self.batch, 3840] if channels else [self.batch, 1, 3840]
            return torch.randn(*wave)
        return torch.rand(
            self.batch, _integer(setting(self.config, "max_length", default=128), 128), _integer(mels, 80)
        )

    def spectrum(self, _: Any = None) -> torch.Tensor:
        mels = _integer(
            setting(
                self.config,
                "num_mel_bins",
                "feature_size",
                "input_feat_per_channel",
                "n_mels",
                "mel_bins",
                "feature_projection_input_dim",
                "input_dim",
                role="audio",
                default=80,
            ),
            80,
        )
        frames = setting(self.config, "max_source_positions", role="audio")
        if "whisper" in self.config.model_type or self.mel_first:
            window = setting(self.config, "n_window", role="audio")
            return torch.rand(self.batch, mels, int(4 * window if window else 2 * (frames or 64)))
        return torch.rand(self.batch, 64, mels)

    def past(self) -> int:
        """Length of a time series: what is looked at, and the lags before it."""
        lags = setting(self.config, "lags_sequence", default=[0]) or [0]
        return _integer(setting(self.config, "context_length", default=16), 16) + max(lags)

    def grid(self, _: Any = None) -> torch.Tensor:
        return torch.tensor([[1, 4, 4]] * self.batch)


def _boxes(maker: Maker, length: Any) -> torch.Tensor:
    return torch.zeros(maker.batch, length or 16, 4, dtype=torch.long)


#: Argument name to what makes it; the second argument is a length to keep to, or ``None``.
MAKERS: dict[str, Callable[[Maker, Any], Any]] = {
    "input_ids": lambda m, n: m.ids(n or 16),
    "decoder_input_ids": lambda m, n: m.ids(n or 6),
    "attention_mask": lambda m, n: torch.ones(m.batch, n or 16, dtype=torch.long),
    "bbox": _boxes,
    "token_type_ids": lambda m, n: torch.zeros(m.batch, n or 16, dtype=torch.long),
    "pixel_values": lambda m, n: m.pixels(),
    "pixel_values_videos": lambda m, n: (
        m.pixels()
        if {"grid_thw", "video_grid_thw"} & set(m.names)
        else torch.rand(
            m.batch,
            _integer(setting(m.config, "num_frames", "frames_per_clip", default=4), 4),
            3,
            m.image_size(),
            m.image_size(),
        )
    ),
    "input_values": lambda m, n: m.sound(),
    "input_features": lambda m, n: m.spectrum(),
    "image_grid_thw": lambda m, n: m.grid(),
    "video_grid_thw": lambda m, n: m.grid(),
    "image_sizes": lambda m, n: torch.tensor([[m.image_size(), m.image_size()]] * m.batch),
    "grid_thw": lambda m, n: m.grid(),
    "past_values": lambda m, n: torch.rand(
        m.batch,
        _integer(setting(m.config, "context_length", default=16), 16)
        + max(setting(m.config, "lags_sequence", default=[0]) or [0]),
        *(
            [_integer(setting(m.config, "num_input_channels", default=1), 1)]
            if setting(m.config, "num_input_channels")
            else []
        ),
    ),
    "hidden_states": lambda m, n: (
        m.pixels()
        if "grid_thw" in m.names
        else torch.rand(m.batch, 16, _integer(setting(m.config, "hidden_size", "d_model"), 32))
    ),
    "inputs_embeds": lambda m, n: torch.rand(m.batch, 16, _integer(setting(m.config, "hidden_size", "d_model"), 32)),
    "encoder_hidden_states": lambda m, n: torch.rand(
        m.batch,
        8,
        _integer(setting(m.config, "cross_attention_hidden_size", "encoder_hidden_size", "hidden_size", "d_model"), 32),
    ),
    "flattened_patches": lambda m, n: torch.rand(m.batch, 16, 770),
    "query_embeds": lambda m, n: torch.rand(m.batch, 4, _integer(setting(m.config, "hidden_size"), 32)),
    "qformer_input_ids": lambda m, n: m.ids(8),
    "visual_feats": lambda m, n: torch.rand(m.batch, 5, _integer(setting(m.config, "visual_feat_dim"), 2048)),
    "visual_pos": lambda m, n: torch.rand(m.batch, 5, 4),
    "input_features_mask": lambda m, n: torch.ones(m.batch, m.spectrum().shape[-2], dtype=torch.long),
    "feature_attention_mask": lambda m, n: torch.ones(m.batch, m.spectrum().shape[-1], dtype=torch.long),
    "states": lambda m, n: torch.rand(m.batch, 5, _integer(setting(m.config, "state_dim"), 17)),
    "actions": lambda m, n: torch.rand(m.batch, 5, _integer(setting(m.config, "act_dim"), 4)),
    "rewards": lambda m, n: torch.rand(m.batch, 5, 1),
    "returns_to_go": lambda m, n: torch.rand(m.batch, 5, 1),
    "timesteps": lambda m, n: torch.zeros(m.batch, 5, dtype=torch.long),
    "past_time_features": lambda m, n: torch.rand(
        m.batch, m.past(), _integer(setting(m.config, "num_time_features"), 0)
    ),
    "past_observed_mask": lambda m, n: torch.ones(m.batch, m.past()),
    "future_values": lambda m, n: torch.rand(m.batch, _integer(setting(m.config, "prediction_length"), 4)),
    "future_time_features": lambda m, n: torch.rand(
        m.batch,
        _integer(setting(m.config, "prediction_length"), 4),
        _integer(setting(m.config, "num_time_features"), 0),
    ),
    "static_categorical_features": lambda m, n: None,
    "input_points": lambda m, n: torch.rand(m.batch, 1, 1, 2),
}
_SOUND = {"input_features", "input_values", "audio_mel", "hidden_states"}
_MASKS = {
    "input_features": ("input_features_mask", "feature_attention_mask", "attention_mask"),
    "input_values": ("padding_mask", "attention_mask"),
}
#: Kinds of media in the order of transformers' `mm_token_type_ids`, and the arguments that hold them.
_PLACES = {
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
    "audio": ("input_features", "input_values"),
}
_MAIN = {
    "input_ids",
    "decoder_input_ids",
    "pixel_values",
    "pixel_values_videos",
    "video_grid_thw",
    "input_values",
    "input_features",
    "image_grid_thw",
    "bbox",
    "past_values",
    "flattened_patches",
    "visual_feats",
    "visual_pos",
    "states",
    "actions",
    "rewards",
    "returns_to_go",
    "timesteps",
    "future_values",
    "past_time_features",
    "past_observed_mask",
    "future_time_features",
}
