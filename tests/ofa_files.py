"""OFA's files in small: a folder as conf/task/ expects it, with real images and a byte-level BPE in GPT-2's format."""

from __future__ import annotations

import argparse
import base64
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel

from mmprompt.models.ofa import OFA
from mmprompt.models.ofa_checkpoint import ALIASES, official_name
from mmprompt.models.shapes import shapes_only
from mmprompt.settings.model import Model

BINS = 50
# What is joined, in this order: " yes" is one piece, " the" is two, anything else is its bytes.
MERGES = [("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s"), ("Ġ", "n"), ("Ġn", "o"), ("Ġ", "t"), ("h", "e")]
SIZES = [(30, 20), (17, 41), (64, 64), (33, 7)]  # width, height
VOCABULARY = 4 + 256 + len(MERGES) + 2 + 1 + BINS  # made-up words, <mask>
MODEL = [f"model.vocab_size={VOCABULARY}", f"model.num_bins={BINS}", "model.max_positions=400"]
FEW = ["optim.steps=4", "optim.batch_size=4", "optim.micro_batch=2", "optim.validate_every=2", "prompt.length=4"]
ANSWERS = ["yes", "no", "a red bus", "café"]


def image(size: tuple[int, int], kind: str = "JPEG", mode: str = "RGB", seed: int = 0) -> str:
    """A coloured ramp, as url-safe base64 of a file."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, np.full_like(x, 40 * seed % 256)], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return base64.urlsafe_b64encode(file.getvalue()).decode()


def rows(task: str, n: int) -> list[list[str]]:
    pictures = [image(SIZES[i % 4], ["JPEG", "PNG"][i % 2], ["RGB", "L", "RGB", "RGBA"][i % 4], i) for i in range(n)]
    if task.startswith("refcoco"):
        boxes = [f"{w / 5},{h / 4},{w / 2},{h}" for w, h in (SIZES[i % 4] for i in range(n))]
        return [[str(i), f"i{i}", f"The left-most <person> né {i}", boxes[i], pictures[i]] for i in range(n)]
    if task == "snli_ve":
        labels = ["contradiction", "entailment", "neutral"]
        return [[str(i), f"i{i}", pictures[i], f"It is {i}.", "A caption", labels[i % 3]] for i in range(n)]
    if task == "coco_caption":
        return [[str(i), f"i{i}", f"A bus, the {i}th.", "car&&bus", pictures[i]] for i in range(n)]
    given = ["1.0|!+yes", "0.6|!+no&&0.3|!+yes", "0.9|!+café", "0.3|!+yes&&1.0|!+a red bus"]
    return [[str(i), f"i{i}", f"Is it {i}?", given[i % 4], "car&&red bus", pictures[i]] for i in range(n)]


def write(file: Path, lines: Sequence[Sequence[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


FILES = {
    "refcoco": [f"refcoco_data/refcoco_{split}.tsv" for split in ("train", "val", "testA", "testB")],
    "refcoco_plus": [f"refcocoplus_data/refcocoplus_{split}.tsv" for split in ("train", "val", "testA", "testB")],
    "refcocog": [f"refcocog_data/refcocog_{split}.tsv" for split in ("train", "val", "test")],
    "snli_ve": [f"snli_ve_data/snli_ve_{split}.tsv" for split in ("train", "dev", "test")],
    "coco_caption": [f"caption_data/caption_{split}.tsv" for split in ("stage1_train", "val", "test")],
    "vqa": [f"vqa_data/vqa_{split}.tsv" for split in ("train", "val")],
}


def make(folder: Path, task: str, n: int = 6, pieces: int = 0, lines: int = 0) -> Path:
    """All that conf/task/TASK.yaml reads, n examples in each split.

    `pieces`, `lines`: at least so many entries of encoder.json and lines of dict.txt; the additional ones occur in no text.
    """
    for name in FILES[task]:
        write(folder / "dataset" / name, rows(task, n))
    if task == "vqa":
        table = {answer: number for number, answer in enumerate(ANSWERS)}
        (folder / "dataset/vqa_data/trainval_ans2label.pkl").write_bytes(pickle.dumps(table))
    bpe = folder / "utils/BPE"
    bpe.mkdir(parents=True, exist_ok=True)
    known = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    known += [f"unused{number}" for number in range(len(known), pieces)]
    (bpe / "encoder.json").write_text(json.dumps({piece: number for number, piece in enumerate(known)}))
    (bpe / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    # By how often they came, not by id.
    dictionary = [f"{number} {len(known) - number}" for number in reversed(range(len(known)))]
    dictionary += [f"madeupword{number:04} 0" for number in range(max(2, lines - len(known)))]
    (bpe / "dict.txt").write_text("\n".join(dictionary) + "\n")
    return folder


def backbone(model: Model, file: Path) -> Path:
    """Random weights under official names."""
    state = OFA(model).state_dict()
    save_file({official_name(name): t.contiguous() for name, t in state.items() if "num_batches" not in name}, file)
    return file


def checkpoint(model: Model, file: Path, random: bool) -> Path:
    """An official .pt file: settings, 16-bit weights under the official names, the aliases, and tensors that are not read here.

    `random`: random weights; else every number is 0 and stored once, so that a file of any size has some hundred kB.
    """
    if random:
        state = {name: tensor.half() for name, tensor in OFA(model).state_dict().items()}
    else:
        with shapes_only():
            empty = OFA(model)
        zero = torch.tensor(0, dtype=torch.float16)
        state = {name: zero.expand(tensor.shape) for name, tensor in empty.state_dict().items()}
    official = {official_name(name): tensor for name, tensor in state.items()}
    official |= dict.fromkeys(ALIASES, official["encoder.embed_tokens.weight"])
    official |= {f"{stack}.version": torch.tensor([3.0]) for stack in ("encoder", "decoder")}
    official |= {f"decoder.code_layernorm_embedding.{part}": torch.zeros(model.dim) for part in ("weight", "bias")}
    official["decoder.image_position_idx"] = torch.zeros(1026, dtype=torch.int64)
    settings = {"model": argparse.Namespace(arch=model.name)}
    torch.save(
        {"args": None, "cfg": settings, "model": official, "extra_state": {}, "last_optimizer_state": None}, file
    )
    return file
