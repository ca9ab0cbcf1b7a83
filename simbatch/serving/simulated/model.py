"""A model made on the spot: its folder (a config with the profile's KV layout, a tokenizer), and its answers.

No weights, no download. Where the profile's model is in the local cache of Hugging Face its tokenizer is taken.
Elsewhere one is trained, in a fifth of a second, on the English text that comes with Python (its help topics):
byte-level BPE, so any text survives it, and about three characters of English are a token. Which token comes next is
a word, the end of the answer at its drawn length, or what a grammar allows.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simbatch.sim.cost.profile import MeasuredProfile, Profile
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.synthetic import length_draw

VOCAB_SIZE = 128_256  # of the config: token ids below are taken from clients
TRAINED_TOKENS = 8192
END, BEGIN = "<|end|>", "<|begin|>"
WORD = re.compile(r"[Ġ▁][a-z]{2,}")  # as byte-level and sentencepiece tokenizers write " word"
MAX_HEAD_DIM = 256
KV_ELEMENTS_BYTES = 4  # a key and a value of bfloat16
CLOSERS = ('"', "}", "]")
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Tokens(NamedTuple):
    """Of a vocabulary: those that read as words, and those that end what a grammar describes, the end first."""

    words: list[int]
    closers: list[int]


def make_model(folder: Path, profile: Profile, max_model_len: int) -> Tokens:
    """Fill the folder; the tokens to answer with."""
    from tokenizers import Tokenizer

    if not _copied(folder, profile):
        _train(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocab = tokenizer.get_vocab()
    _write(folder / "config.json", _config(profile, max_model_len, max(VOCAB_SIZE, max(vocab.values()) + 1)))
    _write(folder / "generation_config.json", {})
    words = sorted(token for text, token in vocab.items() if WORD.fullmatch(text)) or sorted(vocab.values())
    return Tokens(words, [vocab[text] for text in (_end(folder), *CLOSERS) if text in vocab])


def _end(folder: Path) -> str:
    """The text of the token that ends an answer."""
    end = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
    return str(end["content"] if isinstance(end, dict) else end)


def _config(profile: Profile, max_model_len: int, vocab_size: int) -> dict[str, Any]:
    """A decoder of one layer whose keys and values take as many bytes a token as all layers of the real one."""
    kv_bytes = profile.memory.kv_bytes_per_token if isinstance(profile, MeasuredProfile) else KV_ELEMENTS_BYTES * 64
    elements = max(1, kv_bytes // KV_ELEMENTS_BYTES)
    head_dim = max(size for size in (1 << i for i in range(9)) if elements % size == 0 and size <= MAX_HEAD_DIM)
    heads = elements // head_dim
    return {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"},
        **{"num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": head_dim},
        **{"hidden_size": heads * head_dim, "intermediate_size": 2 * heads * head_dim, "hidden_act": "silu"},
        **{"vocab_size": vocab_size, "max_position_embeddings": max(max_model_len, profile.max_model_len)},
        **{"rms_norm_eps": 1e-05, "rope_theta": 500_000.0, "tie_word_embeddings": False},
    }


def _copied(folder: Path, profile: Profile) -> bool:
    """Take the tokenizer of the profile's model, if Hugging Face's cache has it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not isinstance(profile, MeasuredProfile):
        return False
    try:
        found = try_to_load_from_cache(profile.model, "tokenizer.json")
    except HFValidationError:  # the model is a folder or a made-up name
        return False
    if not isinstance(found, str):
        return False
    for name in TOKENIZER_FILES:
        if (file := Path(found).parent / name).is_file():
            shutil.copy(file, folder / name)
    return True


def _train(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED_TOKENS, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    topics = import_module("pydoc_data.topics").topics
    tokenizer.train_from_iterator(topics.values(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1 << 40, "chat_template": CHAT}
    _write(folder / "tokenizer_config.json", config | {"bos_token": BEGIN, "eos_token": END})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


STREAM = 0x5EEDE05  # apart from the streams of a simulation with this seed
ENDLESS = 1 << 60
AT_ONCE = 1024  # lengths drawn ahead
Bits = npt.NDArray[np.int32]


class AnswerLengths:
    """Output lengths in the order in which requests are first scheduled."""

    def __init__(self, resolved: Resolved) -> None:
        workload = resolved.scenario.workload
        assert isinstance(workload, Workload)
        assert workload.output_len is not None
        folder = resolved.scenario.folder
        self._draw = length_draw(workload.output_len, folder=folder, of="num_output_tokens")
        self._rng = np.random.default_rng([STREAM, resolved.scenario.seed])
        self._drawn: list[int] = []

    def next(self) -> int:
        """How long the next answer is, its end included."""
        if not self._drawn:
            self._drawn = self._draw(self._rng, AT_ONCE).tolist()[::-1]
        return self._drawn.pop()


class MadeUpAnswer:
    """What one request gets: tokens by their number, whatever was preempted in between."""

    __slots__ = ("_end", "_length", "num_logprobs", "num_prompt_tokens")

    def __init__(self, num_prompt_tokens: int, sampling_params: Any, lengths: AnswerLengths) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.num_logprobs: int | None = sampling_params.logprobs
        self._end = sampling_params.eos_token_id  # None with `ignore_eos`
        self._length = ENDLESS
        if self._end is not None:
            self._length = max(lengths.next(), sampling_params.min_tokens + 1)

    def token(self, number: int, words: Sequence[int]) -> int:
        """The `number`-th token, from 1."""
        if number >= self._length and self._end is not None:
            return int(self._end)
        return words[(number * 7919 + self.num_prompt_tokens * 104729) % len(words)]


def allowed_token(bits: Bits, closers: Iterable[int]) -> int:
    """A token that a grammar allows: the first of `closers` (ends, brackets, quotes), so that it ends, else the lowest.

    `bits` has a bit for each token, 32 in a number, the lowest first.
    """
    allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")
    return next((token for token in closers if allowed[token]), int(allowed.argmax()))


def made_up_logprobs(tokens: Sequence[int | None], num_logprobs: int, words: Sequence[int]) -> list[npt.NDArray[Any]]:
    """Ids, logprobs and ranks as vLLM's LogprobsLists has them: each step's token first, then words, a nat apart."""
    shape = (len(tokens), max(num_logprobs, 0) + 1)
    ids = np.resize(np.array(words, dtype=np.int32), shape)
    ids[:, 0] = [token or 0 for token in tokens]
    falling = np.broadcast_to(-1.0 - np.arange(shape[1], dtype=np.float32), shape)
    return [ids, falling, np.ones(len(tokens), dtype=np.int32)]
