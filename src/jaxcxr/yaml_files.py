"""Read YAML as the text that stands there: no key or value becomes something else on its way.

Source: the scalars that YAML 1.1 resolves and YAML 1.2's core schema does not (octal and sexagesimal numbers,
timestamps), which PyYAML still reads.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from jaxcxr.errors import InputError


def read_yaml(file: Path, named: str) -> Any:
    """The plain values of a YAML file, keys as text.

    Args:
        file: to read.
        named: what the user called it, for errors.

    Raises:
        InputError: the file cannot be read, is no YAML or no text, or a mapping repeats a key.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8-sig"), Loader=_TextLoader)
    except _BadKey as error:
        raise InputError(f"{named}: {error}") from None
    except RecursionError:
        raise InputError(f"{named}: nested too deeply; expected a mapping of keys to values") from None
    except OSError as error:
        raise InputError(f"{named}: cannot be read ({error.strerror})") from error
    # PyYAML raises these for a tag such as !!int before a text that is none.
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise InputError(f"{named}: not valid YAML ({shortened(' '.join(str(error).split()))})") from error


def shortened(text: str, most: int = 200) -> str:
    """The text, cut after `most` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def require_plain(value: Any, source: str) -> None:
    """Refuse values that no field can hold, anchors that hold themselves, and anchors that multiply.

    Raises:
        InputError: names `source`.
    """
    _count(value, source, {}, ())


def _count(value: Any, source: str, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """Number of values within; `sizes` keeps those already counted, so that no anchor is walked twice."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return 1
    if id(value) in above:
        raise InputError(f"{source}: an anchor that contains itself; expected a mapping of keys to values")
    if id(value) in sizes:
        return sizes[id(value)]
    if len(above) >= 50:
        raise InputError(f"{source}: nested too deeply; expected a mapping of keys to values")
    if not isinstance(value, (dict, list, tuple)):
        raise InputError(
            f"{source}: found a value of type {type(value).__name__}; expected text, numbers, lists "
            "and mappings"
        )
    inner = value.values() if isinstance(value, dict) else value
    size = 1 + sum(_count(item, source, sizes, (*above, id(value))) for item in inner)
    if size > 1_000_000:
        raise InputError(f"{source}: more than a million values; anchors that multiply?")
    sizes[id(value)] = size
    return size


class _BadKey(yaml.YAMLError):
    """A mapping names a key twice, or one that is no text."""


class _TextLoader(yaml.SafeLoader):
    """YAML's safe loader, without three habits of YAML 1.1 that change what stands in a file.

    By itself it takes the last of two equal keys and says nothing; reads the keys `00123`, `12:30` and `no`
    as 83, 750 and False; and reads such values, and dates, as numbers and objects. Here keys are the text
    that stands there, and so are dates and numbers with leading zeros or colons.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """One mapping as written, before `<<` merges others into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _BadKey(f"line {key.start_mark.line + 1}: found a key that is no text; expected a name")
            line = key.start_mark.line + 1
            if key.value in first:
                raise _BadKey(
                    f"line {line}: key {key.value!r} stands on line {first[key.value]} already; expected it "
                    "once"
                )
            first[key.value] = line
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are text, after `<<` has merged others into it."""
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)
            for key, _ in node.value:
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)


_TextLoader.yaml_implicit_resolvers = {
    start: [pair for pair in pairs if not pair[0].endswith((":timestamp", ":int", ":float"))]
    for start, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_TextLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
_TextLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))$"
        r"|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
