"""Composes the configuration of a sweep's points, with Hydra's Compose API and override grammar.

A choice of groups (`task=micro_vqa`) decides which files of `conf/` are read. Reading them is the expensive part, so it is done
once per choice of groups. A leaf (`prompt.length=10`) is set on the composed configuration before its interpolations are
resolved, as Hydra itself does.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmprompt.runs.overrides import check_override
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.spelling import nearest
from sweeps.grid import yaml_file
from sweeps.grid.limits import check_range

TABLES = ("cluster.sbatch", "evaluation.unscored")  # keys whose value is a table; users choose the keys in it
MINE = "mine"  # name of a file that each user writes: conf/cluster/mine.yaml
NOT_SETTINGS = ("sweep", "search")  # folders of conf/ that define sweeps and searches, not settings of a run
INNERMOST = re.compile(r"\$\{([^${}]*)\}")  # an interpolation that contains no other
ABSOLUTE = re.compile(r"\w+(\.\w+)*")  # an absolute key, such as optim.lr


def groups(conf: Path) -> dict[str, list[str]]:
    """The config groups in `conf/`, each with its options in alphabetical order."""
    folders = [path for path in conf.iterdir() if path.is_dir() and path.name not in NOT_SETTINGS]
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def check_files(conf: Path, options: Mapping[str, Sequence[str]]) -> None:
    """Raises ConfigError, with the file's name, for a file that Hydra cannot read or would take long to read."""
    files = [conf / group / f"{name}.yaml" for group, names in options.items() for name in names]
    for file in [conf / "config.yaml", *files]:
        try:
            if file.stem == MINE and not isinstance(yaml_file.read(file), dict):
                raise ConfigError("it is a list; wanted: KEY: VALUE lines")
            if file.stem != MINE:  # files of the repository are parsed only: loading them all takes long
                yaml_file.check(yaml_file.text_of(file))
        except ConfigError as error:
            raise ConfigError(f"{file.relative_to(conf.parent)}: {error}") from None


def parse(text: str, conf: Path, most: int) -> tuple[str, list[Any]]:
    """Returns the key and the values of an override in Hydra's grammar: `key=value`, `key=a,b`, `range(...)`, `glob(...)`, quoted.

    Raises ConfigError for text that Hydra cannot read, for an unknown key or group option, and for a range of more than `most`
    values.
    """
    try:
        override = OverridesParser.create().parse_override(text)
        values = _values(override, text, groups(conf), most)
    except ConfigError:
        raise
    except (HydraException, ValueError, RecursionError) as error:  # numbers of 5,000 digits, lists 500 deep
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(
            f"{text!r} cannot be read ({reason}); write KEY=VALUE or KEY=A,B, and quote a value with special characters"
        ) from None
    check(override.key_or_group, values, conf)
    return override.key_or_group, values


def _values(override: Override, text: str, options: Mapping[str, list[str]], most: int) -> list[Any]:
    key = override.key_or_group
    if override.type is not OverrideType.CHANGE or override.package is not None:
        raise ConfigError(f"{text!r} is not KEY=VALUE; values of conf/ can be replaced, not added or deleted")
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_interval_sweep():
        raise ConfigError(f"{text!r}: an interval has no list of values; write range(start, stop, step) or KEY=A,B")
    glob: object = override.value()
    if isinstance(glob, RangeSweep):
        check_range(repr(text), glob, most)
    if isinstance(glob, Glob):
        if key not in options:
            raise ConfigError(f"{text!r}: glob chooses among the files of a group; groups are {', '.join(options)}")
        chosen: list[Any] = glob.filter(options[key])
        if not chosen:
            raise ConfigError(f"{text!r} matches nothing; allowed: {', '.join(options[key])}")
        return chosen
    return [Override._convert_value(value) for value in override.sweep_iterator()]


def check(key: str, values: Sequence[Any], conf: Path) -> None:
    """Raises ConfigError if no configuration has this key, or if the key is a group without such a file."""
    if key in NOT_SETTINGS:
        raise ConfigError(f"there is no key {key}")
    options = dict.fromkeys(map(str, values))
    for value in (
        options if (conf / key).is_dir() else list(options)[:1]
    ):  # a leaf's values are checked later, by the schema
        check_override(key, value, conf)


class Composed:
    """One choice of groups, for points that set the same leaves. A leaf that is an interpolation has the same text in all of them.

    OmegaConf resolves each interpolation once for all points that agree on the leaves it can read.
    """

    def __init__(self, config: DictConfig, leaves: Mapping[str, Any]) -> None:
        self.config = config  # each point overwrites every leaf that the previous point set
        flat = _flat(cast(dict[str, Any], OmegaConf.to_container(config, resolve=False)))
        for key in leaves:
            if key not in flat:
                raise ConfigError(f"there is no key {key}{nearest(key, flat)}")
        self.unresolved = _nested(flat)
        texts = _interpolated(flat | dict(leaves))
        self.reads = {key: read_by(key, texts, leaves) for key in texts}
        self._resolved: dict[tuple[str, ...], Any] = {}

    def with_leaves(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the resolved configuration as plain containers. Read only: points share the parts in which they agree."""
        names_by_key = {key: (key, *(repr(leaves[leaf]) for leaf in read)) for key, read in self.reads.items()}
        missing = [key for key, cache_key in names_by_key.items() if cache_key not in self._resolved]
        if missing:
            for key, value in leaves.items():
                OmegaConf.update(self.config, key, value, merge=False)
            self._resolved |= {names_by_key[key]: _resolved(OmegaConf.select(self.config, key)) for key in missing}
        resolved = {key: self._resolved[cache_key] for key, cache_key in names_by_key.items()}
        return _replaced(self.unresolved, dict(leaves) | resolved)


Files = tuple[tuple[str, int, int], ...]
CHOICES: dict[
    tuple[Files, tuple[Any, ...]], DictConfig
] = {}  # what Hydra made of each choice of groups in this process


class Composer:
    """Composes the points of a sweep. Hydra runs once per choice of groups and process, as long as no file of conf/ changes;
    OmegaConf once per distinct interpolation.
    """

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        self.options = groups(conf)
        check_files(conf, self.options)
        self._files = files_of(conf, self.options)
        self._composed: dict[tuple[Any, ...], Composed] = {}

    def compose(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the whole configuration under these overrides as plain containers, interpolations resolved. Read only.

        Raises ConfigError for unknown keys and options, and for everything that Hydra or OmegaConf refuses.
        """
        choices = {key: value for key, value in overrides.items() if key in self.options}
        leaves = _flat({key: value for key, value in overrides.items() if key not in self.options})
        cache_key = (*sorted(choices.items()), frozenset(leaves), frozenset(_interpolated(leaves).items()))
        try:
            if cache_key not in self._composed:
                self._composed[cache_key] = Composed(copy.deepcopy(self._choice(choices)), leaves)
            return self._composed[cache_key].with_leaves(leaves)
        except (HydraException, OmegaConfBaseException) as error:
            given = " ".join(f"{key}={value}" for key, value in overrides.items())
            raise ConfigError(f"{given}: {str(error).strip().splitlines()[0]}") from None
        except YAMLError as error:  # its message names the file
            raise ConfigError(yaml_file.one_line(error)) from None

    def unresolved(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the configuration under this choice of groups with its interpolations as written."""
        return cast(dict[str, Any], OmegaConf.to_container(self._choice(choices), resolve=False))

    def _choice(self, choices: Mapping[str, Any]) -> DictConfig:
        cache_key = (self._files, tuple(sorted(choices.items())))
        if cache_key not in CHOICES:
            with initialize_config_dir(str(self.conf), version_base="1.3"):
                CHOICES[cache_key] = compose("config", [f"{key}={value}" for key, value in choices.items()])
        return CHOICES[cache_key]


def files_of(conf: Path, options: Iterable[str]) -> Files:
    """The files that Hydra composes from, with their times and sizes, by which a change is noticed."""
    files = [conf / "config.yaml", *(file for group in options for file in (conf / group).rglob("*.yaml"))]
    found = ((file, file.stat()) for file in files)
    return tuple(sorted((str(file.relative_to(conf)), stat.st_mtime_ns, stat.st_size) for file, stat in found))


def read_by(key: str, texts: Mapping[str, str], leaves: Iterable[str]) -> list[str]:
    """Returns the leaves that the interpolation at `key` can read, directly or through other interpolations.

    `texts`: every interpolation of the configuration, by key.
    """
    read, visited = set(), {key}
    pending = [key]
    while pending:
        references = references_in(texts[pending.pop()])
        if references is None:
            return list(leaves)
        touched = {other for other in (*texts, *leaves) if any(_touches(other, reference) for reference in references)}
        read |= touched.intersection(leaves)
        pending += (touched & texts.keys()) - visited
        visited |= touched
    return sorted(read)


def references_in(text: str) -> set[str] | None:
    """Returns the keys and sections that the interpolations in this text can read. None means that they may read any key.

    `${tuned.${prompt.reparameterization}}` reads the key `prompt.reparameterization` and some key of the section `tuned`. Only
    absolute keys and `oc.env`, which reads no key, are understood; relative keys, brackets and other resolvers give None.
    """
    references = set()
    while match := INNERMOST.search(text):
        if not match[1].startswith("oc.env:"):
            reference = match[1] if "*" not in match[1] else match[1].partition("*")[0].rpartition(".")[0]
            if not ABSOLUTE.fullmatch(reference):
                return None
            references.add(reference)
        text = f"{text[: match.start()]}*{text[match.end() :]}"  # * stands for the value, which is unknown here
    return None if "${" in text else references


def _touches(key: str, reference: str) -> bool:
    """Whether one of the two dotted keys is the other or a section that contains it."""
    return f"{key}.".startswith(f"{reference}.") or f"{reference}.".startswith(f"{key}.")


def _interpolated(flat: Mapping[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in flat.items() if "${" in str(value)}


def _resolved(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns {"a": {"b": 1}} into {"a.b": 1}. Lists and `TABLES` count as values; an empty section stays an empty section."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        is_section = isinstance(value, Mapping) and value and name not in TABLES
        flat |= _flat(value, f"{name}.") if is_section else {name: value}
    return flat


def _replaced(nested: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `nested` with these values at these dotted keys. Sections that hold none of the keys are shared, not copied."""
    sections = {"": dict(nested)}
    for key, value in flat.items():
        section, path = sections[""], key.split(".")
        for depth, part in enumerate(path[:-1], start=1):
            name = ".".join(path[:depth])
            if name not in sections:
                section[part] = sections[name] = dict(section[part])
            section = sections[name]
        section[path[-1]] = value
    return sections[""]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turns {"a.b": 1} into {"a": {"b": 1}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        section = nested
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return nested
