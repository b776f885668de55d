"""A tokenizer over a few words, and the sizes of tiny models of many families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reviews import NEGATIVE, NEUTRAL, POSITIVE
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *NEUTRAL, *POSITIVE, *NEGATIVE, "##s", "##ly", "##er", *"abcdefghijklmnopqrstuvwxyz")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer over a vocabulary of a few words and letters."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(VOCABULARY))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
        model_max_length=64,
    )


def save_model(folder: Path, model: PreTrainedModel) -> Path:
    """Save a model and the tiny tokenizer in one folder."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
GPT = {"vocab_size": len(VOCABULARY), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
SEQ2SEQ = {
    "vocab_size": len(VOCABULARY),
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 3,
}
T5 = {
    "vocab_size": len(VOCABULARY),
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": {**SIZES, "max_position_embeddings": 66},
    "XLMRoberta": {**SIZES, "max_position_embeddings": 66},
    "Camembert": {**SIZES, "max_position_embeddings": 66},
    "MPNet": {**SIZES, "max_position_embeddings": 66},
    "DistilBert": {**SIZES, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "DebertaV2": {**SIZES, "relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]},
    "Deberta": {**SIZES, "relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]},
    "Albert": {**SIZES, "embedding_size": 8},
    "Electra": {**SIZES, "embedding_size": 8},
    "Ernie": SIZES,
    "RoFormer": {**SIZES, "embedding_size": 16},
    "ModernBert": {**SIZES, "cls_token_id": 2, "sep_token_id": 3, "reference_compile": False},
    "XLNet": {"vocab_size": len(VOCABULARY), "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "GPT2": GPT,
    "GPTNeo": {
        **SIZES,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "GPTNeoX": SIZES,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "OPT": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "Bloom": {"vocab_size": len(VOCABULARY), "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Falcon": {**SIZES, "alibi": False},
    "Llama": SIZES,
    "Mistral": GROUPED,
    "Mixtral": {**GROUPED, "num_local_experts": 2},
    "Qwen2": GROUPED,
    "Qwen3": GROUPED,
    "Gemma": GROUPED,
    "Gemma2": {**GROUPED, "query_pre_attn_scalar": 8},
    "Phi": SIZES,
    "Phi3": {**SIZES, "pad_token_id": None},
    "StableLm": GROUPED,
    "T5": T5,
    "MT5": T5,
    "Bart": SEQ2SEQ,
}


def block_of(name: str) -> str:
    """The layer of a parameter of BERT, by the name of the parameter."""
    if ".layer." in name:
        return name.split(".layer.")[1].split(".")[0]
    return "embeddings" if ".embeddings." in name else "head"
