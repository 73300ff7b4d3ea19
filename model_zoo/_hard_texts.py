"""Texts on which tokenizers differ; graphs are held against the original on them, at export and in tests.

None has the character NUL: ONNX Runtime's interfaces take strings that end there.
"""

# ruff: noqa: RUF001 - characters that look alike are what it is about

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["HARD_TEXTS", "PLAIN_TEXTS", "SAMPLES", "with_tokens"]

PLAIN_TEXTS: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog.",
    "It's what they've said: we're here, I'd go, you'll see, I'm not; DON'T, IT'S, THEY'RE!",
    "In 2024, 3.14159 of 1,234,567 users (12%) paid $99.99 on 2024-02-29T23:59:60Z.",
    "def f(x: int) -> list[int]:\n    return [x ** 2 for _ in range(10)]  # squares\n",
    "https://example.org/a/b.html?q=1&r=%20x#frag or mailto:someone@example.org, C:\\Windows\\x.dll",
)
"""What nobody would call hard: a graph that fails on one of these is of no use."""

SAMPLES: tuple[tuple[str, ...], ...] = (
    ("The quick brown fox jumps over the lazy dog.", "Straße, café, ÅNGSTRÖM and 3 naïve İstanbul’s."),
    ("", "東京タワー 👩‍👩‍👧‍👦👍🏽 مرحبا\tनमस्ते  \r\n 한국어"),
    ("  It's 2024: x**2 != 10_000;\n\n\tdef f(): pass  ", "pneumono" * 30),
)
"""Batches for a bundle's own samples, an empty text among them."""

_SPACES = (
    "",
    " ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    " \n",
    "\n \n",
    "  \t \n\n  ",
    " leading",
    "trailing ",
    "  two  spaces   three    four     ",
    "tab\tseparated\tvalues\r\nline\rold mac\n\n\nthree",
    "a\n b\n  c\n\td \n e  \n",
    "no\u00a0break\u2007figure\u202fnarrow\u3000ideographic\u2009thin\u200ahair\u1680ogham\u205fmath",
    "next\u0085line\u2028separator\u2029paragraph\x0bvertical\x0cform\x1cfile\x1dgroup\x1erecord\x1funit",
)
_CONTROL = (
    "".join(map(chr, range(1, 0x20))),
    "\x7f\x80\x81\x9f\xad soft\u00adhyphen",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffbom\u180emongol",
    "\ufeffbom first",
    "\u202eright to left\u202c \u2066isolate\u2069",
    "\ufffd\ufffe\uffff\ufdd0 not characters \U0001fffe\U0010ffff",
    "private \ue000\uf8ff\U000f0000\U00100000 use \ud7ff\ue000",
    "tags \U000e0001\U000e0041\U000e007f",
)
_MARKS = (
    "e\u0301 \u00e9 E\u0301 \u00c9 o\u0302\u0323 \u1ed9 o\u0323\u0302 \u212b \u00c5 A\u030a",
    "\u0301 alone, a\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308\u0309\u030a many",
    "\ufb01ne \ufb03x \ufb06 \u2460 \u2122 \u00bd \u2075 \u2126 \u212a \u00b5 \u03bc",
    "\uff28\uff45\uff4c\uff4c\uff4f \uff11\uff12\uff13 \uff76\uff9e \u30ac \u304b\u3099",
    "\u1112\u1161\u11ab \ud55c \u1100\u1161 \u3131\u314f",
    "\u0130stanbul I\u0307 \u0131 \u1e9e \u00df \u03a3\u03c2\u03c3 \u039f\u0394\u039f\u03a3 \u01c5 \u01c4 \u01c6",
    "\u0958 \u0915\u093c \u0b94 \u0dda \u0fb9 \u2adc \U0001d15e \U0001d160",
    "\u302e\u302f tone \U0001d165\U0001d16d \U00016ff0 marks \u0345\u03b1\u0345 \u1fb3 \u1f80",
    "\u0e33 \u0eb3 \u0f77 \u0f79 \u1026 \u1e9b\u0323 \u0344 \u0340\u0341\u0343",
    "\u2f00\u2f01 \u2e80 \uf900\ufa0e \U0002f800 \U0002f82d",
)
_SCRIPTS = (
    "東京タワーへ行きました。「すごい」と言った！ 中文，没有空格。繁體字 㐀㐁 \U00020000\U0002a6df\U0002b740\U00030000",
    "한국어 띄어쓰기와 조사 처리를 봅니다. 훈민정음 ㄱㄴㄷ ㆍ",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣٤ السَّلَامُ عَلَيْكُمْ ﷺ ﷲ",
    "שלום עולם! מַה שְּׁלוֹמְךָ ״ציטוט״ ׳א׳",
    "नमस्ते दुनिया। १२३४ क्षत्रिय কেমন আছেন ৪৫ வணக்கம் ௧௨ สวัสดีชาวโลก ๑๒๓ မင်္ဂလာပါ",
    "Привет, МИР! Ёлка й и\u0306 ґ Ђ Ѣ Ω Ελληνικά Άέήίόύώ Հայերեն ქართული ᲥᲐᲠᲗᲣᲚᲘ አማርኛ ᏣᎳᎩ ꭰ",
    "Tiếng Việt: Nguyễn Ðức, ế ệ ỗ; Íslenska þæð; Türkçe ğıİş; Polski łódź; Čeština ůž",
    "𝐌𝐚𝐭𝐡 𝒻𝓊𝓃 𝔉𝔯𝔞𝔨 𝟘𝟙𝟚 ℵ ∀x∈ℝ: ⌈x⌉ ≠ ⌊x⌋ ∑∏∫ √2 ≈ 1.41 × ÷ ± ‰ №",
    "mixed русский-english中文123한글ไทย_under-score.dot,comma",
    "ⅠⅡⅢⅳ ①②③ ㊀ ½⅓ ²³¹ ৴ ༳ 𐄇 𑁒 𝍠 𐅀 \U00011d50\U00011df0\U00011de0 \u1369",
)
_EMOJI = (
    "😀😃😄 👍👍🏻👍🏼👍🏽👍🏾👍🏿 👩‍👩‍👧‍👦 👨‍💻 🏳️‍🌈 🏴‍☠️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪🇯🇵🇺🇸🇩 1️⃣#️⃣*️⃣",
    "❤ ❤️ ❤︎ ☺ ☺️ ™ ™️ © ®️ ‼️ ⁉️ 🤷🏽‍♀️ 🫠🪿🩷 text😀glued😀to it",
    "¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻ ಠ_ಠ ʕ•ᴥ•ʔ",
)
_WORDS = (
    "a" * 99 + " " + "b" * 100 + " " + "c" * 101 + " " + "d" * 250,
    "antidisestablishmentarianism " * 3
    + "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbb aaa aa abababababab hahahahaha !!!!!!!!!!!!! ......... ----------- ====",
    "é" * 101 + " " + "e\u0301" * 60,
    "中" * 120,
    "x" + "\u0301" * 130,
    "0123456789" * 12 + " 1 12 123 1234 12345 0x1F 1e-10 1_000 3.14.15 ١٢٣ ½ x1y22z333",
)
_PUNCTUATION = (
    "'s 's' ''s '' 'S 'RE 'Ll 'T'M 'd 've're'll' don't 'tis rock'n'roll y'all'd've ’s ‘quoted’ \u02bcs 'ſ 'K",
    '"quotes" “curly” «guillemets» „low‟ ‚single‛ `back` ´acute´ …ellipsis—dash–en‐hyphen―bar',
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ !! ?? ... !?!? ((())) [[]] {{}} </> => -> <- <> :: ;; ## $$",
    "$€£¥₹₿ + − × = ~ ^ ` | ¦ § ¶ † ‡ • · ° ª º ¡ ¿ ‽ ⸮ 。、 ، ؛ ؟ ۔ ። ፧ ৷ ॥ ༎ ᠃ ⁇ ︙ ﹏ ？ ！",
    ".start .\n .x\n\n,y\r\n;z \r\n\r\n!\n a.b. c .d\t.e",
    "\\n \\t \\u0041 \\x41 %20 &amp; &#65; <b>bold</b> <!-- no --> {{x}} ${y} $(z) `w`",
)
_CODE = (
    'for(int i=0;i<10;++i){\r\n\tprintf("%d\\n",a[i]);\r\n}',
    "SELECT * FROM t WHERE a='b''c' AND d<>NULL; -- comment\n",
    '{"key": [1, 2.5e-3, null, true], "nested": {"\\u00e9": ""}}',
    "camelCaseWord snake_case_word SCREAMING_CASE kebab-case PascalCaseHTTPServer2Go",
    "        eight\n                sixteen\n\t\t\ttabs\n   \n\n\n",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
)
_SPECIAL = (
    "[CLS] a [SEP] b [MASK] [UNK] [PAD] [cls] [sep][SEP][SEP]x [SEP",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n <|endoftext|><|endoftext|> <|im_start |>",
    "<s> </s> <unk> <pad> <mask> <bos> <eos> <s>x</s>y<mask>z [INST] [/INST] <<SYS>>",
    "▁lower one eighth ▁▁ two _ Ġ Ċ ĉ ## ##ing <0x0A> <0xE2>",
)
_LONG = (
    " ".join(f"word{index}" for index in range(0, 700)),
    "Långe ord, 短い語、 emoji 😀 and more. " * 40,
)
HARD_TEXTS: tuple[str, ...] = (
    *_SPACES, *_CONTROL, *_MARKS, *_SCRIPTS, *_EMOJI, *_WORDS, *_PUNCTUATION, *_CODE, *_SPECIAL, *_LONG,
)  # fmt: skip


def with_tokens(tokens: Sequence[str]) -> tuple[str, ...]:
    """Texts that have a tokenizer's own special tokens in them: glued, spaced, doubled, cut, in another case."""
    shapes = ("a{0}b", "a \t{0}  b", "{0}", " {0}{0} {0} ", "{0}\n{0}x", "x{1}", "{2} {3}", "don't{0}'s 1{0}2")
    return tuple(shape.format(token, token[:-1], token.lower(), token.upper()) for token in tokens for shape in shapes)
