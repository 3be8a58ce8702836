"""OFA's vocabulary: GPT-2's byte-level BPE, and a dictionary that gives its ids other numbers (facts 4.2).

0 <s>  1 <pad>  2 </s>  3 <unk>  4 ... the lines of dict.txt in their order: an id of encoder.json and a count
then <mask> and 8,192 codes of images, which no task here reads or writes, and at the end the location tokens
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

FIRST = 4  # id of the dictionary's first line
BIN = re.compile(r"\s*(<bin_\d+>)")


class BPE(Vocabulary):
    def __init__(self, encoder: Path, merges: Path, dictionary: Path, vocab_size: int, num_bins: int) -> None:
        """Raises ConfigError if the files are not what OFA's are, or do not fit the model."""
        self.vocab_size, self.num_bins = vocab_size, num_bins
        known = read_encoder(encoder)
        model = Merges(vocab=known, merges=list(read_merges(merges, known)))
        self.gpt2 = tokenizers.Tokenizer(model)
        self.gpt2.pre_tokenizer = ByteLevel(add_prefix_space=False)
        self.gpt2.decoder = Bytes()
        rows = read_dictionary(dictionary)
        if FIRST + len(rows) > self.first_bin:
            raise ConfigError(
                f"{dictionary} has {len(rows)} lines, and model.vocab_size={vocab_size} with model.num_bins={num_bins} has room "
                f"for {self.first_bin - FIRST}"
            )
        self.ids = {gpt2: FIRST + place for place, gpt2 in enumerate(rows) if gpt2 is not None}
        self.gpt2_ids = {ours: gpt2 for gpt2, ours in self.ids.items()}

    def encode(self, text: str) -> list[int]:
        """As published, with a space before the first word, and location tokens beside the BPE."""
        ids: list[int] = []
        for piece in BIN.split(text if text.startswith(" ") else f" {text}"):
            if BIN.fullmatch(piece):
                place = int(piece[len("<bin_") : -1])
                ids.append(self.first_bin + place if place < self.num_bins else UNK)
            elif piece.strip():
                ids += [self.ids.get(gpt2, UNK) for gpt2 in self.gpt2.encode(piece, add_special_tokens=False).ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        written = list(ids[: list(ids).index(EOS)] if EOS in ids else ids)
        texts = []
        for is_text, group in groupby((i for i in written if i not in (BOS, PAD)), self.gpt2_ids.__contains__):
            if is_text:
                texts.append(self.gpt2.decode([self.gpt2_ids[i] for i in group]))
            else:
                texts += [f" <bin_{i - self.first_bin}>" if i >= self.first_bin else " <unk>" for i in group]
        return "".join(texts).strip()


def read_encoder(file: Path) -> dict[str, int]:
    """GPT-2's encoder.json: pieces and their ids."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not GPT-2's encoder.json: {error}") from None
    if not isinstance(known, dict) or not all(isinstance(number, int) for number in known.values()):
        raise ConfigError(f"{file} is not GPT-2's encoder.json: it must say an id for each piece")
    return known


def read_merges(file: Path, known: dict[str, int]) -> Iterator[tuple[str, str]]:
    """GPT-2's vocab.bpe: after a line with its version, pairs of pieces in the order in which they are joined."""
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or any(piece not in known for piece in (*pair, "".join(pair))):
            raise ConfigError(f"{file}, line {number}: {line!r} joins no two pieces of encoder.json to a third")
        yield pair[0], pair[1]


def read_dictionary(file: Path) -> list[int | None]:
    """OFA's dict.txt: of each line the id in encoder.json; None: no id, as of madeupword0000."""
    rows: list[int | None] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        word, _, count = line.rpartition(" ")
        if not word or not count.isdecimal():
            raise ConfigError(f"{file}, line {number}: {line!r} came; wanted: an id of encoder.json, a space, a count")
        rows.append(int(word) if word.isdecimal() else None)
    return rows
