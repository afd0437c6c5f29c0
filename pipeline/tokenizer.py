"""Text ↔ token ids: a byte-level BPE trained on a bounded sample of the training passages, or a given tokenizer.

Byte-level means that decoding an encoded text gives exactly that text. Text that spells a special token is encoded as
ordinary characters: documents about tokenizers contain ``<|endoftext|>`` and do not end there.

Legend: L tokens in a window, n windows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.passages.text_sample import TextSample, batches_of
from storage_schema.errors import UserError
from storage_schema.json_files import read_bounded
from storage_schema.manifest import Manifest, StoreError, read_manifest, write_atomically
from storage_schema.stage import RunTasks, Stage

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
FILE_NAME = "tokenizer.json"
BATCH_TEXTS = 256
PROBES = (
    "Hello W\N{LATIN SMALL LETTER O WITH DIAERESIS}rld, it's 3.14!",
    " one blank,  two,   three ",
    "\n\nlines\r\nand\ttabs\n    indented\n",
    "e\N{COMBINING ACUTE ACCENT} is not \N{LATIN SMALL LETTER E WITH ACUTE}",
    "\N{LATIN SMALL LIGATURE FI}, \N{SUPERSCRIPT TWO}",
    "\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C} \N{CYRILLIC CAPITAL LETTER ZHE}, \N{PARTY POPPER}",
    "a\N{NO-BREAK SPACE}b\N{ZERO WIDTH JOINER}c\x7f",
    f"the text {END_OF_TEXT} stays text",
)
"""Texts that a given tokenizer must encode and decode without a change."""
TOKENIZER_BYTES = 256 << 20
"""The largest known vocabularies, of 260,000 tokens, take 35 MB."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with its end-of-text token."""

    tokenizer: Tokenizer
    end_of_text: int
    """Id of the token that ends every passage."""
    vocab_size: int
    """One more than the largest id."""

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """uint16 where the ids fit, else uint32."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of ids per text, each ending in end-of-text."""
        ids = []
        for first in range(0, len(texts), BATCH_TEXTS):
            # The library's result for a text is a hundred times as large as its ids.
            batch = list(texts[first : first + BATCH_TEXTS])
            for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                ids.append(np.array([*encoding.ids, self.end_of_text], self.dtype))
        return ids

    def encode_windows(self, texts: Sequence[str], sequence_length: int) -> np.ndarray:
        """Pack the texts into one stream and cut it as a partition is cut: window r is ``stream[r*L : r*L + L + 1]``.

        Returns:
            int64 ``[n, L + 1]``. The incomplete window at the end is left out, so n may be 0.
        """
        if sequence_length < 1:
            raise UserError(f"sequence_length is {sequence_length}; it must be at least 1.")
        stream = np.concatenate([np.empty(0, self.dtype), *self.encode(texts)]).astype(np.int64)
        windows = max(len(stream) - 1, 0) // sequence_length
        starts = np.arange(windows)[:, None] * sequence_length
        return stream[starts + np.arange(sequence_length + 1)]

    def decode(self, ids: np.ndarray) -> str:
        """The text of `ids`, without end-of-text."""
        ids = np.asarray(ids)
        return self.tokenizer.decode(ids[ids != self.end_of_text].tolist(), skip_special_tokens=False)


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Load a ``tokenizer.json``, or the one in the folder `path`.

    Raises:
        StoreError: it is missing, cannot be read, or has no known end-of-text token.
    """
    path = tokenizer_file(path)
    if not path.is_file():
        raise StoreError(f"There is no tokenizer at {path}. Give the path of a tokenizer.json.")
    try:
        content = read_bounded(path, TOKENIZER_BYTES)
        if len(content) > TOKENIZER_BYTES:
            raise UserError(f"it has more than {TOKENIZER_BYTES:,} bytes")
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises a bare Exception for everything wrong with the file
        raise StoreError(f"{path} is not a tokenizer.json: {error}") from error
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    names = [name for name in END_OF_TEXT_NAMES if name in vocabulary]
    if not names:
        raise StoreError(
            f"{path} has none of the end-of-text tokens {', '.join(END_OF_TEXT_NAMES)}. "
            "Add one of them as a special token."
        )
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextTokenizer(tokenizer, vocabulary[names[0]], max(vocabulary.values()) + 1)


def tokenizer_file(path: str | Path) -> Path:
    """The tokenizer's file, from its own path or from that of its folder."""
    return Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)


def check_lossless(tokenizer: TextTokenizer, path: str | Path) -> None:
    """Raise UserError unless each of :data:`PROBES` is the same after encoding and decoding: a model cannot write text
    that its tokenizer loses.
    """
    probes = [*PROBES, f"a {tokenizer.tokenizer.id_to_token(tokenizer.end_of_text)} within a text"]
    for probe, ids in zip(probes, tokenizer.encode(probes), strict=True):
        back = tokenizer.decode(ids[:-1])
        if back != probe:
            raise UserError(
                f"the tokenizer {path} loses text: {probe!r} comes back as {back!r}. Give a byte-level one, whose "
                "normalizer changes nothing and whose end-of-text token is a special one, or leave `tokenizer` out to "
                "have one trained."
            )


def build_tokenizer(
    stage: Stage,
    passages: str | Path,
    *,
    vocab_size: int,
    sample_characters: int,
    given: str | None = None,
    run: RunTasks,
) -> Manifest:
    """Build the ``tokenizer`` stage: train one, or copy the `given` one.

    Args:
        passages: the finished ``passages`` folder.
        sample_characters: train on about this many characters of text, spread over all documents.
        given: the path of a tokenizer to use; None trains one.
        run: runs the tasks that read the text and train.
    """
    path = stage.work / FILE_NAME
    counts = {"sample_characters": 0}
    if given is None:
        total = read_manifest(passages, "passages").counts["train_characters"]
        sample = TextSample(Path(passages), sample_characters, total, run)
        shutil.rmtree(stage.scratch, ignore_errors=True)  # of an attempt that was cut off
        stage.scratch.mkdir()
        sample.write(stage.scratch)
        [characters] = run(train_on_sample, [(stage.scratch, sample.document_characters, vocab_size, path)])
        if characters != sample.characters:
            raise StoreError(
                f"The tokenizer was trained on {characters} characters of {sample.characters}: something changed "
                f"{stage.scratch} meanwhile, or its disk is slow to show new files. Build again."
            )
        counts["sample_characters"] = characters
    else:
        check_lossless(load_tokenizer(given), given)
        write_atomically(path, tokenizer_file(given).read_bytes())
    loaded = load_tokenizer(path)
    return stage.finish(counts | {"vocab_size": loaded.vocab_size, "end_of_text": loaded.end_of_text})


def train_on_sample(sample: Path, document_characters: int, vocab_size: int, path: Path) -> int:
    """Train a tokenizer on the texts in the folder `sample`, and write it to `path`; returns the texts' characters."""
    characters = 0

    def counted() -> Iterator[list[str]]:
        nonlocal characters
        for batch in batches_of(sample, document_characters):
            characters += sum(map(len, batch))
            yield batch

    tokenizer = train_tokenizer(counted(), vocab_size=vocab_size)
    write_atomically(path, tokenizer.to_str(pretty=False))
    return characters


def train_tokenizer(batches: Iterator[list[str]], *, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE. The same text gives the same tokenizer.

    The vocabulary is smaller than `vocab_size` if the text has too few pairs that occur twice.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(batches, trainer)
    return tokenizer
