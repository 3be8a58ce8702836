"""Scores of a whole set of captions, in percent (facts 5.7): BLEU-4, METEOR and SPICE. CIDEr-D, which each caption has for
itself, is in `mmprompt.evaluation.metrics`.

BLEU-4 is always there. METEOR and SPICE are the Java programs of COCO's own evaluation, as pycocoevalcap brings them
(`pip install .[captions]`): they are computed where that package and Java are, SPICE where also its parser's models are, which
`python -m pycocoevalcap.spice.get_stanford_models` fetches once; a job downloads nothing. What is not there, or fails, is
absent: no evaluation fails for it. METEOR takes about 6 s and 1.6 s more per 1,000 captions; SPICE parses every caption it has
not seen before, which takes minutes for 5,000 images. To install the extra is to want them.
n images.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

MODELS = "spice/lib/stanford-corenlp-3.6.0-models.jar"  # of SPICE's parser, in pycocoevalcap's folder

Right = Sequence[Mapping[str, float]]  # of each image, the captions that people gave, and how often each


def further(predicted: Sequence[str], right: Right) -> dict[str, float]:
    """All of these metrics that can be had here, by their names (`mmprompt.runs.config.FURTHER_METRICS`).

    Captions are compared as CIDEr-D compares them, lower case and without punctuation (`mmprompt.data.text.normalised`).
    """
    scores = {"bleu4": bleu4(predicted, right)}
    for name, score in programs().items():
        try:
            scores[name] = score(predicted, right)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"{name} is left out, its Java program failed: {error}", file=sys.stderr, flush=True)
    return scores


def bleu4(predicted: Sequence[str], right: Right) -> float:
    """Corpus BLEU of 1- to 4-grams (Papineni et al. 2002), as COCO defines it: words are what stands between spaces, the length
    is compared with that of the closest caption, the shorter of two, and nothing is smoothed."""
    from sacrebleu.metrics.bleu import BLEU

    references = list(zip_longest(*right))  # the first caption of each image, the second, ...; None: it has no more
    return float(BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(predicted, references).score)


def programs() -> dict[str, Callable[[Sequence[str], Right], float]]:
    """Those that can be run here."""
    package = find_spec("pycocoevalcap")
    if package is None or shutil.which("java") is None:
        return {}
    found: dict[str, Callable[[Sequence[str], Right], float]] = {"meteor": meteor}
    if any((Path(folder) / MODELS).is_file() for folder in package.submodule_search_locations or ()):
        found["spice"] = spice
    return found


def meteor(predicted: Sequence[str], right: Right) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014). Raises OSError or ValueError if the program fails."""
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    try:
        return 100 * float(program.compute_score(*by_image(predicted, right))[0])
    finally:
        if program.lock.locked():  # as a failure leaves it; the destructor would wait for it for ever
            program.lock.release()


def spice(predicted: Sequence[str], right: Right) -> float:
    """SPICE (Anderson et al. 2016). Raises OSError or SubprocessError if the program fails."""
    from pycocoevalcap.spice.spice import Spice

    return 100 * float(Spice().compute_score(*by_image(predicted, right))[0])


def by_image(predicted: Sequence[str], right: Right) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """As pycocoevalcap wants them: the captions that people gave, and the one predicted."""
    given = {image: list(captions) for image, captions in enumerate(right)}
    return given, {image: [text] for image, text in enumerate(predicted)}
