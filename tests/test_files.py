"""Tasks that read OFA's files: what a line becomes, what is refused, and runs from the file to the published score."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import ofa_files
import pytest
import tiny
import torch
from attempts import error_of
from ofa_files import BINS, FEW, MODEL, VOCABULARY, image, make, rows, write
from PIL import Image
from tiny import JOB, job_settings

from mmprompt.data.splits import Split
from mmprompt.data.task_data import TaskData
from mmprompt.data.task_files import locate
from mmprompt.data.tasks import collate, preprocess
from mmprompt.data.tokenizer import UNK
from mmprompt.evaluation.answers import in_pixels
from mmprompt.execution.execute import execute
from mmprompt.families.grounding import hits
from mmprompt.families.lines import DataError, normalise_text
from mmprompt.methods.tuned_model import Tuned
from mmprompt.models.ofa import BOS, EOS, OFA, PAD
from mmprompt.runs.cache import Cache
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.fingerprint import fingerprint
from mmprompt.runs.identity import freeze, run_id
from mmprompt.runs.overrides import check_override
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Caching, Deployment
from mmprompt.settings.parsing import ConfigError, parse
from mmprompt.settings.task import Task

FAMILIES = ["refcoco", "snli_ve", "coco_caption", "vqa"]
SIDE = 64  # pixels


def settings(task: str, *overrides: str) -> tuple[RunConfig, Deployment]:
    given = [f"task={task}", f"task.image_size={SIDE}", *MODEL, *FEW, *overrides]
    return freeze(tiny.composed(*given))


def data_of(config: RunConfig, folder: Path, stage: bool = False, cache: Cache | None = None) -> TaskData:
    return TaskData(config.task, config.model, locate(config.task, str(folder), stage, cache))


def located(task: str, folder: Path, *overrides: str) -> TaskData:
    config, _ = settings(task, f"paths.data={folder}", *overrides)
    return data_of(config, folder)


def loaded(task: str, folder: Path, split: str, *overrides: str) -> tuple[RunConfig, Split]:
    config, _ = settings(task, f"paths.data={folder}", *overrides)
    return config, data_of(config, folder).split(split)


def piece(text: str) -> int:
    """Our id of a piece of the small encoder.json, worked out from how `ofa_files` writes it: the dictionary is in reverse."""
    pieces = [*sorted(ofa_files.ByteLevel.alphabet()), *("".join(pair) for pair in ofa_files.MERGES)]
    return 4 + len(pieces) - 1 - pieces.index(text)


def first_bin() -> int:
    return VOCABULARY - BINS


# ------------------------------------------------------------------------------------------------------------ vocabulary


def test_text_is_gpt2_pieces_under_the_numbers_of_the_dictionary(tmp_path: Path) -> None:
    words = located("snli_ve", make(tmp_path, "snli_ve")).vocabulary
    assert words.encode(" yes") == [piece("Ġyes")]
    assert words.encode("no") == [piece("Ġno")]  # a space goes before the first word
    assert words.encode(" the é") == [piece("Ġt"), piece("he"), piece("Ġ"), piece("Ã"), piece("©")]
    assert words.encode(" no  yes") == [piece("Ġno"), piece("Ġ"), piece("Ġyes")]  # a second space stands alone
    assert words.encode("<bin_0> <bin_49>") == [first_bin(), first_bin() + 49]
    assert words.encode(f"<bin_{BINS}>") == [UNK]
    assert words.encode(" no: <bin_3> yes") == [piece("Ġno"), piece(":"), first_bin() + 3, piece("Ġyes")]


@pytest.mark.parametrize(
    "text", ["yes", "a café, 12 buses!", "the 猫 said \N{SLIGHTLY SMILING FACE}", "<bin_3> <bin_0>"]
)
def test_what_was_encoded_is_read_back(text: str, tmp_path: Path) -> None:
    words = located("snli_ve", make(tmp_path, "snli_ve")).vocabulary
    assert words.decode([BOS, *words.encode(text), EOS, PAD, PAD]) == text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("encoder.json", "{", "encoder.json is not GPT-2's encoder.json"),
        ("vocab.bpe", "#version: 0.2\nĠ q q\n", "vocab.bpe, line 2: 'Ġ q q' joins no two pieces"),
        ("dict.txt", "12\n", "dict.txt, line 1: '12' came; wanted: an id of encoder.json, a space, a count"),
        ("dict.txt", "1 1\n" * 300, "dict.txt has 300 lines, and model.vocab_size="),
    ],
)
def test_files_of_another_vocabulary_are_refused(name: str, content: str, said: str, tmp_path: Path) -> None:
    (make(tmp_path, "snli_ve") / "utils/BPE" / name).write_text(content, encoding="utf-8")
    data = located("snli_ve", tmp_path)
    with pytest.raises(ConfigError) as error:
        _ = data.vocabulary
    assert said in str(error.value)


# ------------------------------------------------------------------------------------------------------------- what lines say


def test_a_box_becomes_location_tokens_over_512_pixels_whatever_the_image_size(tmp_path: Path) -> None:
    _, split = loaded("refcoco", make(tmp_path, "refcoco"), "train")
    words = split.vocabulary
    for i, (width, height) in enumerate(ofa_files.SIZES):
        box = width / 5, height / 4, width / 2, height
        resized = [box[0] * SIDE / width, box[1] * SIDE / height, box[2] * SIDE / width, box[3] * SIDE / height]
        assert split.samples[i].answer == [first_bin() + round(pixel / 512 * (BINS - 1)) for pixel in resized]
        expected = f' which region does the text " the left most person né {i} " describe?'
        assert split.samples[i].source == [BOS, *words.encode(expected), EOS]
        assert split.samples[i].start == [BOS]


def test_the_right_location_tokens_are_a_hit_on_the_original_box(tmp_path: Path) -> None:
    """With 1,000 of them, as in OFA: 50 over 512 pixels are too few for an image of 64."""
    make(tmp_path, "refcoco")
    _, split = loaded("refcoco", tmp_path, "testA", "model.num_bins=1000", f"model.vocab_size={VOCABULARY + 950}")
    words = split.vocabulary
    boxes = [
        in_pixels(words.coordinates(s.answer, 1.0), i.extent) for s, i in zip(split.samples, split.items, strict=True)
    ]
    assert split.items[1].box == (17 / 5, 41 / 4, 17 / 2, 41)
    assert hits(boxes, [item.box for item in split.items if item.box is not None]) == [100] * 6
    assert boxes[1] == pytest.approx(split.items[1].box, abs=0.15)


def test_entailment_reads_the_caption_too_and_answers_in_words(tmp_path: Path) -> None:
    _, split = loaded("snli_ve", make(tmp_path, "snli_ve"), "dev")
    words = split.vocabulary
    text = ' can image and text1 " a caption " imply text2 " it is 1. "?'
    sample = split.samples[1]
    assert sample.source == [BOS, *words.encode(text), EOS]
    assert sample.start == sample.source[:-1]  # prev_output: without </s>
    assert (sample.text, sample.answer) == ("yes", [piece("Ġyes")])
    assert [item.answer for item in split.items[:3]] == ["no", "yes", "maybe"]
    batch = collate([sample])
    assert batch.target[0].tolist() == [PAD] * (len(sample.source) - 2) + [piece("Ġyes"), EOS]
    assert batch.weight is None


def test_without_the_caption_and_with_the_end_of_the_instruction_is_a_matter_of_two_keys(tmp_path: Path) -> None:
    template = """task.template=' does the image describe " {hypothesis} "?'"""
    _, split = loaded("snli_ve", make(tmp_path, "snli_ve"), "dev", template, "task.prompt_type=src")
    sample, words = split.samples[0], split.vocabulary
    assert sample.source == sample.start == [BOS, *words.encode(' does the image describe " it is 0. "?'), EOS]


def test_a_caption_is_trained_on_without_punctuation_and_up_to_its_twentieth_word(tmp_path: Path) -> None:
    long = " ".join(f"w{i}," for i in range(25))
    lines = rows("coco_caption", 2)
    lines[0][2] = long
    write(make(tmp_path, "coco_caption") / "dataset/caption_data/caption_stage1_train.tsv", lines)
    _, split = loaded("coco_caption", tmp_path, "train")
    assert split.samples[0].text == " ".join(f"w{i}" for i in range(20))
    assert split.samples[1].text == "A bus the 1th"


def test_all_captions_of_an_image_are_right_as_often_as_they_were_given(tmp_path: Path) -> None:
    lines = rows("coco_caption", 1)
    lines[0][2] = "A Bus.&&a bus&&two buses, one red"
    write(make(tmp_path, "coco_caption") / "dataset/caption_data/caption_val.tsv", lines)
    _, split = loaded("coco_caption", tmp_path, "val")
    assert split.items[0].right == {"a bus": 2, "two buses one red": 1}


def test_a_question_is_answered_by_the_best_scored_answer_whose_score_weighs_the_loss(tmp_path: Path) -> None:
    _, split = loaded("vqa", make(tmp_path, "vqa"), "train")
    words = split.vocabulary
    assert split.samples[0].source == [BOS, *words.encode(" is it 0? object: car red bus"), EOS]
    assert [sample.text for sample in split.samples[:4]] == ["yes", "no", "café", "a red bus"]
    assert split.items[1].right == {"no": 0.6, "yes": 0.3}
    batch = collate(split.samples[:4])
    assert batch.weight is not None and batch.weight.tolist() == pytest.approx([1, 0.6, 0.9, 1])
    assert located("vqa", tmp_path).answers == ofa_files.ANSWERS
    _, unweighted = loaded("vqa", tmp_path, "train", "task.data.confidence=false")
    assert collate(unweighted.samples[:4]).weight is None


@torch.no_grad()
@pytest.mark.parametrize("over", ["allowed", "vocabulary"])
def test_the_loss_of_an_answer_is_as_large_as_its_confidence(over: str, tmp_path: Path) -> None:
    config, split = loaded("vqa", make(tmp_path, "vqa"), "train", f"optim.smoothing_over={over}")
    closed = located("vqa", tmp_path).answer_ids
    tuned = Tuned(config, OFA(config.model), torch.Generator().manual_seed(0), closed)
    features = tuned.backbone.features(preprocess(split.images[torch.tensor([1])], SIDE))
    text = collate([split.samples[1]])
    whole = tuned.loss(replace(text, weight=None), features, config.optim, 0.0)
    assert tuned.loss(text, features, config.optim, 0.0).item() == pytest.approx(0.6 * whole.item())


def test_a_template_without_objects_needs_no_column_of_them(tmp_path: Path) -> None:
    make(tmp_path, "vqa")
    for name in ofa_files.FILES["vqa"]:
        write(tmp_path / "dataset" / name, [[line[2], line[3], line[5]] for line in rows("vqa", 3)])
    config, _ = settings("vqa", f"paths.data={tmp_path}")
    columns = {"question": 0, "answers": 1, "image": 2}
    values = config.task.model_dump() | {"template": " {question}?"}
    task = parse(Task, values | {"data": values["data"] | {"columns": columns}})
    data = TaskData(task, config.model, locate(task, str(tmp_path), stage=False, cache=None))
    assert data.split("val").items[2].fields == {"question": "is it 2"}
    with pytest.raises(ConfigError, match=r"does not say in which column objects stands"):
        parse(Task, task.model_dump() | {"template": " {question}? object: {objects}"})
    with pytest.raises(ConfigError, match=r"task.data.columns has label, which task.family=vqa does not read"):
        parse(Task, values | {"data": values["data"] | {"columns": columns | {"label": 3}}})


@pytest.mark.parametrize(
    ("text", "words", "cleaned"),
    [
        ("...The  Cat/dog -- <PERSON> ", 80, "the cat dog person"),
        ("one two three", 2, "one two"),
        ("what?", 80, "what?"),
        ("#:;~!", 80, ""),
    ],
)
def test_texts_are_cleaned_as_published(text: str, words: int, cleaned: str) -> None:
    assert normalise_text(text, words) == cleaned


# ------------------------------------------------------------------------------------------------------------------- images


def test_images_of_any_size_and_kind_are_pillows_bicubic_squares(tmp_path: Path) -> None:
    config, split = loaded("refcoco", make(tmp_path, "refcoco"), "val")
    seen = split.images[torch.arange(6)]
    assert seen.shape == (6, SIDE, SIDE, 3) and seen.dtype == torch.uint8
    for i, line in enumerate(rows("refcoco", 6)):
        original = Image.open(io.BytesIO(base64.urlsafe_b64decode(line[4]))).convert("RGB")
        expected = np.asarray(original.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        assert np.array_equal(seen[i], expected)
        pixels = preprocess(seen[i : i + 1], config.task.image_size)[0].permute(1, 2, 0)
        assert torch.allclose(pixels, torch.from_numpy((expected / 255 - 0.5) / 0.5).float(), atol=1e-6)


def test_images_look_different_unless_they_are_the_same(tmp_path: Path) -> None:
    lines = rows("refcoco", 4)
    lines[3][4] = lines[0][4]
    write(make(tmp_path, "refcoco") / "dataset/refcoco_data/refcoco_val.tsv", lines)
    looks = loaded("refcoco", tmp_path, "val")[1].digests()
    assert looks[3] == looks[0] and len(set(looks)) == 3


# ------------------------------------------------------------------------------------------------------------- what is refused


def damaged(task: str, column: int, value: str) -> list[list[str]]:
    lines = rows(task, 3)
    lines[1][column] = value
    return lines


CUT = image((30, 20), "PNG")
WRONG = [
    ("refcoco", damaged("refcoco", 3, "1,2,3"), "line 2: the box '1,2,3' came; wanted: x0,y0,x1,y1"),
    ("refcoco", damaged("refcoco", 3, "9,2,3,4"), "line 2: the box '9,2,3,4' came; wanted: its top left corner"),
    ("refcoco", damaged("refcoco", 4, CUT[:-1]), "... is not base64 (Incorrect padding)"),
    ("refcoco", damaged("refcoco", 4, CUT[:9] + "!" + CUT[9:]), "... is not base64 (Only base64 data is allowed)"),
    ("refcoco", damaged("refcoco", 4, "R0lGODlh"), "line 2: its image cannot be read"),
    (
        "refcoco",
        [line[:4] for line in rows("refcoco", 2)],
        "line 1 has 4 columns, so there is no column 4 (counted from 0; task.data.columns.image)",
    ),
    ("refcoco", [*rows("refcoco", 2), ["2", "i2", "cut"]], "line 3 has 3 columns, so there is no column 3"),
    (
        "refcoco",
        [*rows("refcoco", 1), [*rows("refcoco", 1)[0], "more"]],
        "line 2 has 6 columns; the lines before it have 5",
    ),
    ("refcoco", [], "is empty"),
    ("snli_ve", damaged("snli_ve", 5, "Neutral"), "line 2: the label 'Neutral' came; wanted: one of contradiction"),
    ("coco_caption", damaged("coco_caption", 2, "a bus&&a car"), "line 2: 2 captions came, joined by &&"),
    ("coco_caption", damaged("coco_caption", 2, "?!"), "line 2: the caption '?!' came; wanted: words"),
    ("vqa", damaged("vqa", 3, "no"), "line 2: the answer 'no' came; wanted: a score from 0 to 1, then |!+"),
    ("vqa", damaged("vqa", 3, "7|!+no"), "line 2: the answer '7|!+no' came; wanted: a score from 0 to 1"),
    ("vqa", damaged("vqa", 3, "1.0|!+a green bus"), "line 2: the answer 'a green bus' came, which is none of the 4"),
]


@pytest.mark.parametrize(("task", "lines", "said"), WRONG, ids=[said[-30:] for _, _, said in WRONG])
def test_a_line_that_is_wrong_is_named_before_anything_trains(
    task: str, lines: list[list[str]], said: str, tmp_path: Path
) -> None:
    file = make(tmp_path, task) / "dataset" / ofa_files.FILES[task][0]
    write(file, lines)
    with pytest.raises(DataError) as error:
        loaded(task, tmp_path, "train")
    assert said in str(error.value) and str(file) in str(error.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    file = make(tmp_path, "snli_ve") / "dataset/snli_ve_data/snli_ve_train.tsv"
    file.write_bytes(file.read_bytes().replace(b"It is 2", b"It is \xff"))
    with pytest.raises(DataError, match="line 3 is not UTF-8"):
        loaded("snli_ve", tmp_path, "train")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_that_ends_too_early_is_read_as_far_as_it_goes(tmp_path: Path, kind: str) -> None:
    content = base64.urlsafe_b64decode(image((300, 300), kind))
    lines = damaged("refcoco", 4, base64.urlsafe_b64encode(content[: len(content) // 2]).decode())
    write(make(tmp_path, "refcoco") / "dataset/refcoco_data/refcoco_val.tsv", lines)
    seen = loaded("refcoco", tmp_path, "val")[1].images[torch.arange(3)][1].numpy()
    whole = Image.open(io.BytesIO(content)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    near = np.abs(seen.astype(int) - np.asarray(whole).astype(int)).max((1, 2)) < 3  # by row
    assert near[: SIDE // 4].all() and not near[-SIDE // 4 :].any()


def test_a_pickle_that_asks_for_code_is_not_run(tmp_path: Path) -> None:
    file = make(tmp_path, "vqa") / "dataset/vqa_data/trainval_ans2label.pkl"
    file.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    data = located("vqa", tmp_path)
    with pytest.raises(DataError, match=r"is not a pickled table from answers to numbers: it asks for os.system"):
        _ = data.answers
    assert not (tmp_path / "ran").exists()


def test_answers_may_be_a_text_with_one_on_each_line(tmp_path: Path) -> None:
    (make(tmp_path, "vqa") / "answers.txt").write_text("yes\nno\n\na red bus\ncafé\n", encoding="utf-8")
    data = located("vqa", tmp_path, "task.answers=answers.txt")
    assert len(data.split("train")) and data.answers == ofa_files.ANSWERS


# --------------------------------------------------------------------------------------------------------- where files lie


def test_the_id_is_of_what_files_hold_and_not_of_where_they_lie(tmp_path: Path) -> None:
    here, there = make(tmp_path / "here", "vqa"), make(tmp_path / "there", "vqa")
    config, _ = settings("vqa", f"paths.data={here}")
    assert run_id(config) == run_id(settings("vqa", f"paths.data={there}")[0])
    assert str(tmp_path) not in config.model_dump_json()
    write(there / "dataset/vqa_data/vqa_val.tsv", rows("vqa", 5))
    assert run_id(config) != run_id(settings("vqa", f"paths.data={there}")[0])


def test_one_split_may_be_given_other_files_by_an_override() -> None:
    check_override("task.data.files.train", "[a.tsv,b.tsv]", ROOT / "conf")
    with pytest.raises(ConfigError, match=r"there is no key task.data.file.train"):
        check_override("task.data.file.train", "[a.tsv]", ROOT / "conf")


def test_missing_files_are_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"task=vqa reads files, and paths.data=null; give the folder that holds dataset/vqa"
    ):
        settings("vqa")
    with pytest.raises(
        ConfigError, match=r"holds no file dataset/refcoco_data/refcoco_testA.tsv, which task=refcoco reads"
    ):
        (make(tmp_path, "refcoco") / "dataset/refcoco_data/refcoco_testA.tsv").unlink()
        settings("refcoco", f"paths.data={tmp_path}")


def test_files_that_changed_since_launch_are_not_trained_on(tmp_path: Path) -> None:
    config, _ = settings("vqa", f"paths.data={make(tmp_path, 'vqa')}")
    write(tmp_path / "dataset/vqa_data/vqa_val.tsv", rows("vqa", 2))
    with pytest.raises(RuntimeError, match="have changed since launch"):
        locate(config.task, str(tmp_path), stage=False, cache=None)


def test_staged_files_are_read_from_the_nodes_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    config, _ = settings("snli_ve", f"paths.data={make(tmp_path / 'shared', 'snli_ve', 5)}")
    data = data_of(config, tmp_path / "shared", stage=True)
    file = tmp_path / "shared/dataset/snli_ve_data/snli_ve_dev.tsv"
    checksum = fingerprint(file)
    file.unlink()
    assert len(data.split("dev")) == 5
    assert [path.parent.name for path in (tmp_path / "disk").rglob("snli_ve_dev.tsv")] == [checksum]


def test_an_index_is_kept_read_again_and_made_again_when_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = settings("coco_caption", f"paths.data={make(tmp_path, 'coco_caption', 7)}")
    first = data_of(config, tmp_path, cache=Cache(tmp_path / "cache", 1.0)).split("val")
    [kept] = (tmp_path / "cache").glob("*.lines")
    content, made = kept.read_bytes(), kept.stat().st_mtime_ns
    assert data_of(config, tmp_path, cache=Cache(tmp_path / "cache", 1.0)).split("val").items[3] == first.items[3]
    assert kept.stat().st_mtime_ns == made
    kept.write_bytes(content[:-1])
    assert data_of(config, tmp_path, cache=Cache(tmp_path / "cache", 1.0)).split("val").digests() == first.digests()
    assert "is damaged; it is made again" in capsys.readouterr().out and kept.read_bytes() == content


def test_several_files_of_a_split_are_one_behind_the_other(tmp_path: Path) -> None:
    make(tmp_path, "snli_ve", 3)
    names = ["dataset/snli_ve_data/snli_ve_dev.tsv", "dataset/snli_ve_data/snli_ve_train.tsv"]
    write(tmp_path / names[1], rows("snli_ve", 5)[2:])
    _, split = loaded("snli_ve", tmp_path, "train", f"task.data.files.train=[{','.join(names)}]")
    assert [item.fields["hypothesis"] for item in split.items] == [f"it is {i}." for i in (0, 1, 2, 2, 3, 4)]
    assert split.images[torch.tensor([5])].shape == (1, SIDE, SIDE, 3)


# -------------------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("task", "override", "said"),
    [
        (
            "vqa",
            "task.template=' {caption}?'",
            "task.template asks for {caption}; of task.family=vqa it may ask for: question",
        ),
        (
            "refcoco",
            "task.data.max_image_size=null",
            "task.data.max_image_size=null, but location tokens need an extent",
        ),
        (
            "refcoco",
            "task.data.validation=dev",
            "task.data.validation=dev must be one of task.data.files other than train",
        ),
        (
            "refcoco",
            "task.data.confidence=true",
            "task.data.confidence=true, but answers of task.family=grounding have none",
        ),
        (
            "refcoco",
            "task.data.encoder=/data/encoder.json",
            "names the file '/data/encoder.json'; wanted: a name inside",
        ),
        (
            "refcoco",
            "task.data.max_source_words=0",
            "task.data.max_source_words=0 (int) is not allowed; wanted: greater",
        ),
        ("refcoco", "task.data.world=coco", "task.data.world='coco' is not allowed; choose one of digits, tsv"),
        (
            "micro_vqa",
            "task.answers=answers.txt",
            "task.answers=answers.txt names a file, and task.data.world=digits has none",
        ),
    ],
)
def test_a_wrong_setting_of_a_task_is_refused_with_one_sentence(task: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(task, override)
    assert said in str(error.value) and "\n" not in str(error.value)


PUBLISHED = [  # facts 3.3: size, task, rate, drop-path, smoothing, pixels, embedding frozen
    ("base", "refcoco", 5e-5, 0.1, 0.1, 512, False),
    ("large", "refcocog", 3e-5, 0.2, 0.1, 512, False),
    ("base", "snli_ve", 5e-5, 0.1, 0.0, 480, False),
    ("large", "snli_ve", 2e-5, 0.2, 0.0, 480, False),
    ("large", "coco_caption", 1e-5, 0.1, 0.1, 480, True),
    ("large", "vqa", 5e-5, 0.2, 0.1, 480, True),
]


@pytest.mark.parametrize(("size", "task", "lr", "drop", "smoothing", "pixels", "frozen"), PUBLISHED)
def test_finetuning_has_the_published_settings(
    size: str, task: str, lr: float, drop: float, smoothing: float, pixels: int, frozen: bool, tmp_path: Path
) -> None:
    config = composed(f"task={task}", f"model=ofa_{size}", "method=finetune", f"paths.data={make(tmp_path, task)}")
    assert config.optim.lr == lr and config.optim.label_smoothing == smoothing and config.task.image_size == pixels
    assert config.model.encoder_drop_path == config.model.decoder_drop_path == drop
    assert config.finetune is not None and config.finetune.freeze_embedding == frozen
    assert config.backbone.mode == "train"


@pytest.mark.parametrize("task", ofa_files.FILES)
@pytest.mark.parametrize("method", ["prompt", "bitfit", "adapter", "lora", "finetune"])
def test_every_task_composes_with_every_method(task: str, method: str, tmp_path: Path) -> None:
    config = composed(f"task={task}", "model=ofa_base", f"method={method}", f"paths.data={make(tmp_path, task, 1)}")
    assert config.task.name == task
    if config.prompt is not None:
        assert (config.optim.lr, config.prompt.dropout) == (0.03, 0.2)
        assert config.optim.batch_size == (256 if task in ("coco_caption", "vqa") else 128)


def composed(*overrides: str) -> RunConfig:
    some = "paths.backbone=mmprompt/backbones/micro.safetensors"  # its content is another matter
    return freeze(tiny.composed(*overrides, some))[0]


# ------------------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("task", FAMILIES)
def test_a_task_from_files_is_trained_evaluated_and_published(task: str, tmp_path: Path) -> None:
    given = [f"paths.data={make(tmp_path / 'ofa', task)}", f"backbone.mode={'train' if task == 'vqa' else 'eval'}"]
    file = ofa_files.backbone(settings(task, *given)[0].model, tmp_path / "backbone.safetensors")
    config, _ = settings(task, *given, f"paths.backbone={file}")
    store = Store(tmp_path / "runs")
    folder = store.run(run_id(config))
    folder.create(config)
    places = job_settings(backbone=str(file), data=str(tmp_path / "ofa"))
    said = execute(store, [folder.id], places, JOB)
    assert said == {folder.id: "done"}, [error_of(attempt) for attempt in folder.attempts()]
    result = folder.result()
    assert result is not None and result["steps"] == 4
    splits = {
        "refcoco": ["val", "testA", "testB"],
        "snli_ve": ["dev", "test"],
        "coco_caption": ["val", "test"],
        "vqa": ["val"],
    }
    assert list(result["evaluations"]) == splits[task] == config.task.splits
    for split in splits[task]:
        evaluation = json.loads(folder.evaluation_file(result["evaluations"][split]).read_text())
        assert evaluation["n"] == 6 and all(0 <= value <= 1000 for value in evaluation["metrics"].values())


def test_caching_features_of_file_tasks_changes_no_bit(tmp_path: Path) -> None:
    make(tmp_path / "ofa", "snli_ve")
    given = [f"paths.data={tmp_path / 'ofa'}", "prompt.depth=decoder", "optim.steps=1"]
    file = ofa_files.backbone(settings("snli_ve", *given)[0].model, tmp_path / "backbone.safetensors")
    config, _ = settings("snli_ve", *given, f"paths.backbone={file}")
    weights = []
    for limit in (0.0, 20.0):
        store = Store(tmp_path / f"runs{limit}")
        folder = store.run(run_id(config))
        folder.create(config)
        kept = {"cache": Caching(frozen="auto", max_gb=limit)}
        execute(store, [folder.id], job_settings(backbone=str(file), data=str(tmp_path / "ofa"), **kept), JOB)
        weights.append(folder.weights_file.read_bytes())
        assert bool(list(store.cache.glob("*.rows"))) == bool(limit)
    assert weights[0] == weights[1]
