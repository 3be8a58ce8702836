"""Captions: an image described in words, and scored by how people described it (facts 5.7).

CIDEr-D each caption has for itself; BLEU-4, METEOR and SPICE are of a whole set of captions, in percent. BLEU-4 is always there.
METEOR and SPICE are the Java programs of COCO's own evaluation, as pycocoevalcap brings them (`pip install .[captions]`): they
are computed where that package and Java are, SPICE where also its parser's models are, which
`python -m pycocoevalcap.spice.get_stanford_models` fetches once; a job downloads nothing. What is not there, or fails, is
absent: no evaluation fails for it. METEOR takes about 6 s and 1.6 s more per 1,000 captions; SPICE parses every caption it has
not seen before, which takes minutes for 5,000 images. To install the extra is to want them.
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

from mmprompt.families.family import Family, FurtherMetric, PrimaryMetric
from mmprompt.families.lines import AND, DataError, Example, FileSettings, Size, Texts, example_of
from mmprompt.families.text import normalised, without_punctuation

MODELS = "spice/lib/stanford-corenlp-3.6.0-models.jar"  # of SPICE's parser, in pycocoevalcap's folder

Right = Mapping[str, float]  # of an image, the captions that people gave, and how often each
Score = Callable[[Sequence[str], Sequence[Right]], float]


def read(texts: Texts, size: Size, image_size: int, data: FileSettings, trained: bool) -> Example:
    """Trained on without its punctuation; scored in lower case as well, as the evaluation of COCO reads captions."""
    captions = texts["captions"].split(AND)
    if trained and len(captions) > 1:
        raise DataError(f"{len(captions)} captions came, joined by {AND}; wanted, to train on: one on each line")
    bare = [without_punctuation(text) for text in captions]
    if not any(bare):
        raise DataError(f"the caption {texts['captions']!r} came; wanted: words")
    answer = next(text for text in bare if text)
    right = Counter(normalised(text) for text in bare if text)
    return example_of({}, " ".join(answer.split()[: data.max_target_words]), right, 1.0)


def cider_d(predicted: Sequence[str], right: Sequence[Right]) -> list[float]:
    """CIDEr-D (Vedantam et al. 2015, section 6): 1- to 4-grams, clipped counts, length penalty with sigma 6.

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
    words = text.split()
    return [tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)]


def bleu4(predicted: Sequence[str], right: Sequence[Right]) -> float:
    """Corpus BLEU of 1- to 4-grams (Papineni et al. 2002), as COCO defines it: words are what stands between spaces, the length
    is compared with that of the closest caption, the shorter of two, and nothing is smoothed."""
    from sacrebleu.metrics.bleu import BLEU

    references = list(zip_longest(*right))  # the first caption of each image, the second, ...; None: it has no more
    return float(BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(predicted, references).score)


def meteor(predicted: Sequence[str], right: Sequence[Right]) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014). Raises OSError or ValueError if the program fails."""
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    try:
        return 100 * float(program.compute_score(*by_image(predicted, right))[0])
    finally:
        if program.lock.locked():  # as a failure leaves it; the destructor would wait for it for ever
            program.lock.release()


def spice(predicted: Sequence[str], right: Sequence[Right]) -> float:
    """SPICE (Anderson et al. 2016). Raises OSError or SubprocessError if the program fails."""
    from pycocoevalcap.spice.spice import Spice

    return 100 * float(Spice().compute_score(*by_image(predicted, right))[0])


def by_image(predicted: Sequence[str], right: Sequence[Right]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """As pycocoevalcap wants them: the captions that people gave, and the one predicted."""
    given = {image: list(captions) for image, captions in enumerate(right)}
    return given, {image: [text] for image, text in enumerate(predicted)}


def can_run_meteor() -> bool:
    return find_spec("pycocoevalcap") is not None and shutil.which("java") is not None


def can_run_spice() -> bool:
    package = find_spec("pycocoevalcap")
    folders = package.submodule_search_locations or () if package else ()
    return can_run_meteor() and any((Path(folder) / MODELS).is_file() for folder in folders)


def where_it_runs(name: str, score: Score, can_run: Callable[[], bool]) -> Callable[..., float | None]:
    """The score of a Java program; None, with a line on stderr if it was tried, where that does not run."""

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
    spell=normalised,
    primary=PrimaryMetric("cider", "CIDEr × 100", "CIDEr", cider_d, highest=1000.0, unit="CIDEr-D times 100"),  # noqa: RUF001
    further=(
        FurtherMetric("bleu4", "BLEU-4", "B@4", bleu4, "BLEU-4"),
        FurtherMetric("meteor", "METEOR", "M", where_it_runs("meteor", meteor, can_run_meteor), "METEOR"),
        FurtherMetric("spice", "SPICE", "S", where_it_runs("spice", spice, can_run_spice), "SPICE"),
    ),
)
