"""Small real tokenizers of each kind, trained on the licences and documents that Python installs."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@lru_cache(maxsize=1)
def real_texts() -> tuple[str, ...]:
    """Paragraphs of what is installed here: licences, and the documentation inside the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [folder / name for name in ("LICENSE.txt", "typing.py", "argparse.py", "html/entities.py", "this.py")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    return tuple(part for text in texts for part in text.split("\n\n") if part)


def _byte_pairs(
    pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=CHAT, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(real_texts(), trainer)
    return tokenizer


def _split(pattern: str, *before: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([*before, split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2() -> Tokenizer:
    return _byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=False))


def roberta() -> Tokenizer:
    tokenizer = _byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=True))
    mask, user = AddedToken("<mask>", lstrip=True), AddedToken("<|user|>", rstrip=True)
    tokenizer.add_special_tokens(["<s>", "</s>", mask, user])
    tokenizer.add_tokens([AddedToken("wörd", lstrip=True, rstrip=True)])
    ends = [(word, tokenizer.token_to_id(word)) for word in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends)
    return tokenizer


def smollm() -> Tokenizer:
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _byte_pairs(pre_tokenizers.Sequence([digits, bytes_]))


def starcoder() -> Tokenizer:
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _byte_pairs(pre_tokenizers.Sequence([digits, bytes_]))


def llama3() -> Tokenizer:
    tokenizer = _byte_pairs(_split(LLAMA3))
    tokenizer.model.ignore_merges = True
    start = "<|endoftext|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]),
        ]
    )
    return tokenizer


def qwen2() -> Tokenizer:
    return _byte_pairs(_split(QWEN2), normalizers.NFC())


def o200k() -> Tokenizer:
    return _byte_pairs(_split(O200K))


def bert(lower: bool = True) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(real_texts(), trainer)
    ends = [(word, tokenizer.token_to_id(word)) for word in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def bert_cased() -> Tokenizer:
    return bert(lower=False)


def llama2() -> Tokenizer:
    """Byte pairs over whole texts, ▁ for spaces, bytes for what has no token: as converted from SentencePiece."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(real_texts(), trainer)
    bare = _only(tokenizer, special[:3])
    bare.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bare.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bare.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return bare


def gemma() -> Tokenizer:
    tokenizer = llama2()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1000, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(real_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _only(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    """The same model, with no more than these as special tokens, and no pre-tokenizer."""
    import json

    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [item for item in definition["added_tokens"] if item["content"] in special]
    definition["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(definition))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    made.__name__: made
    for made in (gpt2, roberta, smollm, starcoder, llama3, qwen2, o200k, bert, bert_cased, llama2, gemma, unigram)
}


@cache
def definition(kind: str) -> str:
    """The tokenizer.json of a kind."""
    return KINDS[kind]().to_str()
