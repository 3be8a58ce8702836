"""Captions: an image is described in words, and the description is compared with those that people gave (facts 5.7).

Each caption has a CIDEr-D score of its own; BLEU-4, METEOR and SPICE are scores of a whole set of captions, in percent. BLEU-4 is
always computed. METEOR and SPICE are the Java programs of COCO's own evaluation, from the package pycocoevalcap
(`pip install .[captions]`). Both need that package and Java; SPICE also needs its parser's models, which
`python -m pycocoevalcap.spice.get_stanford_models` downloads once, because a job downloads nothing. A metric that is not
installed, or whose program fails, is left out, and the evaluation goes on without it. METEOR takes about 6 s plus 1.6 s per 1,000
captions; SPICE parses every caption that is new to it, which takes minutes for 5,000 images. No setting switches them on: they
are computed wherever they are installed.
n images. CIDEr-D is at most 10 (Vedantam et al. 2015), here times 100.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

from mmprompt.families.challenge import Challenge
from mmprompt.families.family import Family, FurtherMetric, PrimaryMetric
from mmprompt.families.lines import AND, NOT_SCORED, DataError, Example, FileSettings, Size, Texts, example_of
from mmprompt.families.text import normalised, without_punctuation

MODELS = "spice/lib/stanford-corenlp-3.6.0-models.jar"  # of SPICE's parser, in pycocoevalcap's folder

Right = Mapping[str, float]  # the captions that people gave of an image, and how often each was given
Score = Callable[[Sequence[str], Sequence[Right]], float]


def read(texts: Texts, size: Size, image_size: int, data: FileSettings, trained: bool) -> Example:
    """Reads a line. A caption to train on loses its punctuation; captions to compare with are in lower case too, as in COCO's
    evaluation. Raises DataError if there is no caption, or several to train on."""
    if "captions" not in texts:
        return example_of({}, "", {}, 1.0)
    captions = texts["captions"].split(AND)
    if trained and len(captions) > 1:
        raise DataError(f"{len(captions)} captions came, joined by {AND}; wanted, to train on: one on each line")
    bare = [without_punctuation(text) for text in captions]
    if not any(bare):
        hint = "" if trained or texts["captions"].strip() else f"; {NOT_SCORED}"
        raise DataError(f"the caption {texts['captions']!r} came; wanted: words{hint}")
    answer = next(text for text in bare if text)
    right = Counter(normalised(text) for text in bare if text)
    return example_of({}, " ".join(answer.split()[: data.max_target_words]), right, 1.0)


def cider_d(predicted: Sequence[str], right: Sequence[Right]) -> list[float]:
    """CIDEr-D of each predicted caption, n (Vedantam et al. 2015, section 6): 1- to 4-grams, clipped counts, length penalty with
    sigma 6.

    `right`: the captions of each image, and how often each was given. Document frequencies are those of these captions. Words are
    split at spaces; COCO's own evaluation splits them with a Java program.
    """
    documents = Counter(gram for captions in right for gram in {gram for text in captions for gram in ngrams(text)})
    log_size = math.log(max(len(right), 2))

    def weights(text: str) -> list[dict[tuple[str, ...], float]]:
        by_length: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for gram, count in Counter(ngrams(text)).items():
            by_length[len(gram) - 1][gram] = count * (log_size - math.log(max(1, documents[gram])))
        return by_length

    def similarity(guess: str, caption: str) -> float:
        total = 0.0
        for g, r in zip(weights(guess), weights(caption), strict=True):
            norm = math.sqrt(sum(w * w for w in g.values())) * math.sqrt(sum(w * w for w in r.values()))
            clipped = sum(min(w, r[gram]) * r[gram] for gram, w in g.items() if gram in r)
            total += clipped / norm if norm else 0.0
        gap = len(guess.split()) - len(caption.split())
        return 100 * 10 * total / 4 * math.exp(-(gap**2) / (2 * 6**2))

    scores = []
    for guess, captions in zip(predicted, right, strict=True):
        given = sum(captions.values())
        scores.append(sum(times * similarity(guess, caption) for caption, times in captions.items()) / given)
    return scores


def ngrams(text: str) -> list[tuple[str, ...]]:
    """All 1- to 4-grams of a text's words."""
    words = text.split()
    return [tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)]


def bleu4(predicted: Sequence[str], right: Sequence[Right]) -> float:
    """Corpus BLEU of 1- to 4-grams in percent (Papineni et al. 2002), as COCO defines it: words are split at spaces; the reference
    length is that of the caption closest in length, the shorter of two; nothing is smoothed."""
    from sacrebleu.metrics.bleu import BLEU

    references = list(zip_longest(*right))  # the first caption of each image, the second, ...; None: no more
    return float(BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(predicted, references).score)


def meteor(predicted: Sequence[str], right: Sequence[Right]) -> float:
    """METEOR 1.5 in percent (Denkowski and Lavie 2014). Raises OSError or ValueError if the program fails."""
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    try:
        return 100 * float(program.compute_score(*by_image(predicted, right))[0])
    finally:
        if program.lock.locked():  # after a failure; the destructor would wait for the lock forever
            program.lock.release()


def spice(predicted: Sequence[str], right: Sequence[Right]) -> float:
    """SPICE in percent (Anderson et al. 2016). Raises OSError or SubprocessError if the program fails."""
    from pycocoevalcap.spice.spice import Spice

    return 100 * float(Spice().compute_score(*by_image(predicted, right))[0])


def by_image(predicted: Sequence[str], right: Sequence[Right]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Captions in the form that pycocoevalcap expects: for each image those that people gave, and the predicted one."""
    given = {image: list(captions) for image, captions in enumerate(right)}
    return given, {image: [text] for image, text in enumerate(predicted)}


def can_run_meteor() -> bool:
    return find_spec("pycocoevalcap") is not None and shutil.which("java") is not None


def can_run_spice() -> bool:
    package = find_spec("pycocoevalcap")
    folders = package.submodule_search_locations or () if package else ()
    return can_run_meteor() and any((Path(folder) / MODELS).is_file() for folder in folders)


def none_unless_it_runs(name: str, score: Score, can_run: Callable[[], bool]) -> Callable[..., float | None]:
    """Wraps the score of a Java program: it is None where the program cannot run, and where it fails, with a line on stderr."""

    def value(predicted: Sequence[str], right: Sequence[Right]) -> float | None:
        if not can_run():
            return None
        try:
            return score(predicted, right)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"{name} is left out, its Java program failed: {error}", file=sys.stderr, flush=True)
            return None

    return value


CAPTION = Family(
    name="caption",
    texts=(),
    truth="captions",
    read=read,
    answers="text",
    normalise=normalised,
    primary=PrimaryMetric("cider", "CIDEr × 100", "CIDEr", cider_d, highest=1000.0, unit="CIDEr-D times 100"),  # noqa: RUF001
    further=(
        FurtherMetric("bleu4", "BLEU-4", "B@4", bleu4, "BLEU-4"),
        FurtherMetric("meteor", "METEOR", "M", none_unless_it_runs("meteor", meteor, can_run_meteor), "METEOR"),
        FurtherMetric("spice", "SPICE", "S", none_unless_it_runs("spice", spice, can_run_spice), "SPICE"),
    ),
    challenge=Challenge("COCO's caption challenge", "captions", "image_id", "caption", id_column=1),
)
