"""YAML in and out, with the line of every key, and numbers as people write them (`1e-4` is a number here)."""

import re
from pathlib import Path
from typing import Any

import yaml

from plato_core.errors import ConfigError

Lines = dict[tuple[str, ...], int]
"""The line, counted from 1, of each key by its path."""

# YAML 1.1, which PyYAML follows, takes a float only with a dot and a signed exponent: `1e-4` would be text.
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


def _resolvers(table: dict[str, Any]) -> dict[str, Any]:
    """Copy PyYAML's table of implicit types, without dates and with the wider floats."""
    dropped = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    kept = {k: [(tag, rx) for tag, rx in v if tag not in dropped] for k, v in table.items()}
    for first in "-+0123456789.":
        kept.setdefault(first, []).append(("tag:yaml.org,2002:float", _FLOAT))
    return kept


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers(yaml.SafeLoader.yaml_implicit_resolvers)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse_value(text: str) -> Any:
    """Read one YAML value, such as an environment variable's.

    Raises:
        ConfigError: If it is no YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not readable: {_problem(error)}") from None


def read_mapping(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read a YAML file that holds a mapping.

    Returns:
        Its content, and the line of each key.

    Raises:
        ConfigError: If the file cannot be read, is no YAML mapping, or gives a key twice; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: Lines = {}
            if isinstance(node, yaml.MappingNode):
                _collect_lines(path, node, (), lines)
            content = loader.construct_document(node) if node is not None else {}
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not readable as YAML: {_problem(error)}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}; give `setting: value`, one on each line")
    return content, lines


def dump(content: Any) -> str:
    """Write YAML that `read_mapping` gives back unchanged, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


def _collect_lines(path: Path, node: yaml.MappingNode, prefix: tuple[str, ...], lines: Lines) -> None:
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path} line {key.start_mark.line + 1}: a key must be a plain name")
        where = (*prefix, str(key.value))
        line = key.start_mark.line + 1
        if where in lines:
            raise ConfigError(f"{path} line {line}: {'.'.join(where)} stands on line {lines[where]} already")
        lines[where] = line
        if isinstance(value, yaml.MappingNode):
            _collect_lines(path, value, where, lines)


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]
