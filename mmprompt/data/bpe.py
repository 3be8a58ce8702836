"""OFA's vocabulary: GPT-2's byte-level BPE, with a dictionary that renumbers its ids (facts 4.2).

The ids are 0 <s>, 1 <pad>, 2 </s>, 3 <unk>, and from 4 on the lines of dict.txt in their order, each an id of encoder.json and a
count. After them come <mask> and 8,192 image codes, which no task here reads or writes. The location tokens are the last ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import tokenizers
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE as Merges
from tokenizers.pre_tokenizers import ByteLevel

from mmprompt.data.tokenizer import UNK, Vocabulary
from mmprompt.models.ofa import BOS, EOS, PAD
from mmprompt.settings.parsing import ConfigError

FIRST_WORD = 4  # id of the dictionary's first line
BIN = re.compile(r"\s*(<bin_\d+>)")


class BPE(Vocabulary):
    def __init__(self, encoder: Path, merges: Path, dictionary: Path, vocab_size: int, num_bins: int) -> None:
        """Reads the three files. Raises ConfigError if one is not in the format of OFA's files, or if they do not fit the model."""
        self.vocab_size, self.num_bins = vocab_size, num_bins
        gpt2_vocabulary = read_encoder(encoder)
        model = Merges(vocab=gpt2_vocabulary, merges=list(read_merges(merges, gpt2_vocabulary)))
        self.gpt2 = tokenizers.Tokenizer(model)
        self.gpt2.pre_tokenizer = ByteLevel(add_prefix_space=False)
        self.gpt2.decoder = Bytes()
        rows = read_dictionary(dictionary)
        if FIRST_WORD + len(rows) > self.first_bin:
            raise ConfigError(
                f"{dictionary} has {len(rows)} lines, and model.vocab_size={vocab_size} with model.num_bins={num_bins} has room "
                f"for {self.first_bin - FIRST_WORD}"
            )
        self.ids = {gpt2_id: FIRST_WORD + row for row, gpt2_id in enumerate(rows) if gpt2_id is not None}
        self.gpt2_ids = {our_id: gpt2_id for gpt2_id, our_id in self.ids.items()}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, as in the published code: a space is put before the first word, and location tokens bypass the BPE."""
        ids: list[int] = []
        for piece in BIN.split(text if text.startswith(" ") else f" {text}"):
            if BIN.fullmatch(piece):
                bin_number = int(piece[len("<bin_") : -1])
                ids.append(self.first_bin + bin_number if bin_number < self.num_bins else UNK)
            elif piece.strip():
                gpt2_ids = self.gpt2.encode(piece, add_special_tokens=False).ids
                ids += [self.ids.get(gpt2_id, UNK) for gpt2_id in gpt2_ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        before_end = list(ids[: list(ids).index(EOS)] if EOS in ids else ids)
        texts = []
        for is_text, group in groupby((i for i in before_end if i not in (BOS, PAD)), self.gpt2_ids.__contains__):
            if is_text:
                texts.append(self.gpt2.decode([self.gpt2_ids[i] for i in group]))
            else:
                texts += [f" <bin_{i - self.first_bin}>" if i >= self.first_bin else " <unk>" for i in group]
        return "".join(texts).strip()


def read_encoder(file: Path) -> dict[str, int]:
    """Reads GPT-2's encoder.json: the id of each piece of text. Raises ConfigError if it is another file."""
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not GPT-2's encoder.json: {error}") from None
    if not isinstance(ids, dict) or not all(isinstance(number, int) for number in ids.values()):
        raise ConfigError(f"{file} is not GPT-2's encoder.json: it must map each piece of text to an id")
    return ids


def read_merges(file: Path, gpt2_vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Reads GPT-2's vocab.bpe: after a line with its version, pairs of pieces in the order in which they are joined.

    Raises ConfigError for a line that is not two pieces of encoder.json whose concatenation is a third.
    """
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or any(piece not in gpt2_vocabulary for piece in (*pair, "".join(pair))):
            raise ConfigError(f"{file}, line {number}: {line!r} joins no two pieces of encoder.json to a third")
        yield pair[0], pair[1]


def read_dictionary(file: Path) -> list[int | None]:
    """Reads OFA's dict.txt: the id in encoder.json that each line has, None for a line without one, such as madeupword0000.

    Raises ConfigError for a line that is not a word and a count.
    """
    rows: list[int | None] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        word, _, count = line.rpartition(" ")
        if not word or not count.isdecimal():
            raise ConfigError(f"{file}, line {number}: {line!r} came; wanted: an id of encoder.json, a space, a count")
        rows.append(int(word) if word.isdecimal() else None)
    return rows
