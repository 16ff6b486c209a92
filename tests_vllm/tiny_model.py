"""A Qwen2.5-VL with random weights, small enough to be made here: the real architecture, nothing downloaded.

Its words mean nothing. It proves that engines, prompts and pictures go together; it proves no quality.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from dmesr_server.enrichment import prompts
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

PATCH, MERGE = 14, 2
HEAD = 32  # the smallest that vLLM runs on a CPU
CONTEXT = 4096
VOCABULARY = 1536
PIXELS = 8 * 8 * 28 * 28  # of the pictures in the tests: 64 tokens

_END_OF_TEXT, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_IMAGE, _VIDEO = "<|image_pad|>", "<|video_pad|>"
_VISION = ("<|vision_start|>", "<|vision_end|>")
_SPECIAL = (_END_OF_TEXT, _START, _END, *_VISION, _IMAGE, _VIDEO)
# Qwen's own way of cutting words before merging.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes configuration, tokenizer, processor and weights into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    pictures = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28},
    }
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pictures), tokenizer, Qwen2VLVideoProcessor(**pictures), chat_template=_CHAT
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(_config(ids, vocabulary=-(-len(tokenizer) // 64) * 64))
    _spread(model)
    model.generation_config = GenerationConfig(
        bos_token_id=ids[_END_OF_TEXT],
        eos_token_id=[ids[_END], ids[_END_OF_TEXT]],
        pad_token_id=ids[_END_OF_TEXT],
    )
    model.save_pretrained(folder)
    return folder


def build_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Writes a sentence-transformers model with one layer and random weights: 64 dimensions, 128 tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(seed)
    shape = {"hidden_size": 2 * HEAD, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4 * HEAD}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=128, **shape)
    BertModel(config).eval().save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128, "do_lower_case": True}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 2 * HEAD, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def _spread(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Weights by which the answer depends on the whole prompt.

    The usual small ones let the last token decide alone: neither picture nor attributes would show in the answer, and
    an engine that lost them would not be found out.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue
            if "embed_tokens" in name:
                weight.normal_(std=0.3)
            elif "lm_head" in name:
                weight.normal_(std=0.6)
            else:
                weight.normal_(std=weight[0].numel() ** -0.5)


def _tokenizer(folder: Path) -> Qwen2TokenizerFast:
    """Byte-level BPE of plain ASCII, so that noise is at least made of letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    ascii_bytes = [symbol for symbol in pre_tokenizers.ByteLevel.alphabet() if ord(symbol) < 127 or symbol in "ĠĊ"]
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(_SPECIAL), initial_alphabet=ascii_bytes, limit_alphabet=128, show_progress=False
        ),
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return Qwen2TokenizerFast(
        tokenizer_file=str(file),
        eos_token=_END,
        pad_token=_END_OF_TEXT,
        unk_token=None,
        bos_token=None,
        additional_special_tokens=list(_SPECIAL[1:]),
        model_max_length=CONTEXT,
        chat_template=_CHAT,
    )


def _corpus() -> Sequence[str]:
    said = list(prompts.load(None).texts.values())
    films = [
        "title: Toy Story; year: 1995; genres: adventure, animation, comedy; a cowboy doll meets a space ranger.",
        "title: Heat; year: 1995; genres: action, crime, thriller; a detective hunts a gang of robbers in the city.",
        "A vivid poster in deep blue and warm orange shows a lighthouse above a stormy sea and a small red kite.",
    ]
    return [*said, *films] * 4


def _config(ids: dict[str, int], *, vocabulary: int) -> Qwen2_5_VLConfig:
    ends = {"bos_token_id": ids[_END_OF_TEXT], "eos_token_id": ids[_END], "pad_token_id": ids[_END_OF_TEXT]}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 2 * HEAD,
            "intermediate_size": 4 * HEAD,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": CONTEXT,
            # The parts of time, height and width of a position; their sum is half a head.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            **ends,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 2 * HEAD,
            "intermediate_size": 4 * HEAD,
            "num_heads": 2,
            "out_hidden_size": 2 * HEAD,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        image_token_id=ids[_IMAGE],
        video_token_id=ids[_VIDEO],
        vision_start_token_id=ids[_VISION[0]],
        vision_end_token_id=ids[_VISION[1]],
        tie_word_embeddings=False,
        **ends,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]))
