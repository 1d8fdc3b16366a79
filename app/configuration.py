"""Where the settings come from: command line, environment, `.env`, a YAML file, else the defaults.

The first source that has a setting wins, and an empty value counts as none. `.env` is that of the
working directory; its values are taken as they are written. The YAML file is the first of
`_FILE_VARIABLES` and `_PLACES` that is there. Its section `service` holds the variables' names in
lower case, with or without their prefix; `${VAR}` and `${VAR:-default}` in its strings are filled
from the environment and `.env`.

A file of the working directory may be somebody else's. Commands that send keys to a service take
the address of that service from the command line and the environment alone (`of_this_call`).
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from dotenv.parser import parse_stream

from app.errors import ConfigurationError
from app.settings import PREFIXES, Settings, convert, variables_of

COMMAND_LINE = "command line"
ENVIRONMENT = "environment"
DOTENV = ".env"
DEFAULT = "default"

_FILE_VARIABLES = ("SEALDEX_CONFIG_FILE", "CYBORGDB_CONFIG_FILE")
_PLACES = (
    Path("sealdex.yaml"),
    Path("cyborgdb.yaml"),
    Path("cyborgdb.yml"),
    Path("/etc/sealdex/sealdex.yaml"),
    Path("/etc/cyborgdb/cyborgdb.yaml"),
)
_VARIABLES = {variable for item in fields(Settings) for variable in variables_of(item.name)}
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

# What a deployment of the service we replace may bring along; it concerns that service's storage,
# GPU or licence.
_OF_NO_USE = re.compile(
    r"CYBORGDB_(DB_TYPE|DISK_PATH|API_KEY|S3_\w+)"
    r"|GPU_OPERATIONS|CPU_THREADS|CACHE_POLICY_\w+|REQUIRE_API_KEY"
)
# These are ours, but no settings of the service: client commands, compose file and tests read them.
_NO_SETTINGS = re.compile(r"SEALDEX_(URL|API_KEY|INDEX_KEY|CA_FILE|PORT|CONFIG_FILE|TEST_\w+)")


@dataclass(frozen=True, slots=True)
class Source:
    """One place with settings: its name for the reader, and text by variable."""

    name: str
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings, with what the operator wants to know of them.

    `origins` names the source of each field, `notices` are sentences for the log, and `environment`
    is what gives the workers the same settings.
    """

    settings: Settings
    origins: Mapping[str, str]
    notices: Sequence[str]
    environment: Mapping[str, str]

    @classmethod
    def load(
        cls,
        options: Mapping[str, str],
        env: Mapping[str, str] = os.environ,
        directory: Path = Path(),
    ) -> "Configuration":
        """Read all sources; `options` are those of the command line, by field.

        Raises `ConfigurationError` naming setting, source, value and what is allowed.
        """
        given = {variables_of(name)[0]: text for name, text in options.items()}
        sources = [Source(COMMAND_LINE, given), Source(ENVIRONMENT, env), *_dotenv(directory)]
        known = _known(sources)
        notices = [notice for source in sources for notice in _notices(source)]
        if (path := _config_file(known, directory)) is not None:
            document = _yaml(path, known)
            sources.append(Source(str(path), _service_section(document, path)))
            notices += [*_notices(sources[-1]), *_section_notices(document, path)]
        return _configuration(sources, notices)

    def is_of_this_call(self, name: str) -> bool:
        """Whether the field `name` has its value from the command line, the environment or us."""
        return self.origins[name] in {COMMAND_LINE, ENVIRONMENT, DEFAULT}

    def of_this_call(self) -> Settings:
        """Return the settings without what a file said; its fields have their defaults."""
        of_files: dict[str, Any] = {
            item.name: item.default
            for item in fields(Settings)
            if not self.is_of_this_call(item.name)
        }
        return replace(self.settings, **of_files)


def _configuration(sources: Sequence[Source], notices: Sequence[str]) -> Configuration:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    environment: dict[str, str] = {}
    for item in fields(Settings):
        origins[item.name] = DEFAULT
        for source, variable, text in _given(sources, item.name):
            values[item.name] = convert(item, variable, text, source.name)
            origins[item.name] = source.name
            environment[variables_of(item.name)[0]] = text
            break
    return Configuration(Settings(**values), origins, tuple(dict.fromkeys(notices)), environment)


def _known(sources: Sequence[Source]) -> dict[str, str]:
    """Return the text of every variable that has one, from the strongest of its sources."""
    return {
        name: text for source in reversed(sources) for name, text in source.texts.items() if text
    }


def _given(sources: Sequence[Source], name: str) -> Iterator[tuple[Source, str, str]]:
    """Yield source, variable and text of each place that has the field `name`, strongest first."""
    for source in sources:
        for variable in variables_of(name):
            if text := source.texts.get(variable):
                yield source, variable, text


def _notices(source: Source) -> Iterator[str]:
    """Say what `source` has that nothing reads, one sentence each."""
    for name in sorted(name for name, text in source.texts.items() if text):
        if name in _VARIABLES or _NO_SETTINGS.fullmatch(name):
            continue
        is_ours = name.startswith("SEALDEX_") or source.name not in {ENVIRONMENT, DOTENV}
        if _OF_NO_USE.fullmatch(name):
            yield f"{name} ({source.name}) has no meaning here and is ignored"
        elif is_ours:
            yield f"{name} ({source.name}) is no setting and is ignored{_hint(name)}"


def _hint(name: str) -> str:
    """Return the question whether another setting was meant, if one has a similar name."""
    nearest = difflib.get_close_matches(name, _VARIABLES, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _dotenv(directory: Path) -> Iterator[Source]:
    """Yield the file `.env` of a directory, if there is one."""
    path = directory / ".env"
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    for binding in bindings:
        if binding.error:
            raise ConfigurationError(f"{path}, line {binding.original.line}: must be NAME=value")
    yield Source(
        DOTENV,
        {binding.key: binding.value for binding in bindings if binding.key and binding.value},
    )


def _config_file(known: Mapping[str, str], directory: Path) -> Path | None:
    """Return the YAML file to read, or None.

    Raises `ConfigurationError` when one is named but not there.
    """
    for variable in _FILE_VARIABLES:
        if name := known.get(variable):
            path = directory / name
            if not path.is_file():
                raise ConfigurationError(f"{variable}={name!r}: must name a YAML file that exists")
            return path
    return next((path for place in _PLACES if (path := directory / place).is_file()), None)


def _yaml(path: Path, known: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the document in the file, with its references filled."""
    document = _parsed(path) or {}
    filled = _filled(document, path, known)
    if not isinstance(filled, dict):
        raise ConfigurationError(f"{path}: must be a mapping with a section `service`")
    return filled


def _parsed(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = "" if mark is None else f", line {mark.line + 1}"
        # The error's text can quote the file, which may hold a key.
        raise ConfigurationError(f"{path}{place}: is no valid YAML") from None


def _filled(value: Any, path: Path, known: Mapping[str, str]) -> Any:
    """Return `value` with the references in its strings replaced."""
    if isinstance(value, dict):
        return {key: _filled(inner, path, known) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, path, known) for inner in value]
    if isinstance(value, str):
        return _REFERENCE.sub(partial(_text_of, path=path, known=known), value)
    return value


def _text_of(reference: re.Match[str], path: Path, known: Mapping[str, str]) -> str:
    """Return what stands for a reference. Raises `ConfigurationError` when nothing does."""
    name, default = reference.groups()
    if name not in known and default is None:
        raise ConfigurationError(
            f"{path}: ${{{name}}} is not set: set {name}, or write ${{{name}:-default}}"
        )
    return known.get(name, default or "")


def _service_section(document: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the section `service` as text by variable."""
    section = document.get("service") or {}
    if not isinstance(section, dict):
        raise ConfigurationError(f"{path}: `service` must be a mapping of settings")
    return {
        _variable(str(key)): _text(key, value, path)
        for key, value in section.items()
        if value is not None
    }


def _variable(key: str) -> str:
    """Return the variable that a key of the file names, with its prefix or without."""
    name = key.upper()
    return next((prefix + name for prefix in ("", *PREFIXES) if prefix + name in _VARIABLES), name)


def _text(key: object, value: object, path: Path) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigurationError(f"{path}: service.{key} must be a single value, or a list of texts")


def _section_notices(document: Mapping[str, Any], path: Path) -> Iterator[str]:
    for section in document:
        if section == "kms":
            yield (
                f"kms ({path}): key services are not available, "
                "so indexes with a kms_name are refused"
            )
        elif section != "service":
            yield f"{section} ({path}) is no section of ours and is ignored"
