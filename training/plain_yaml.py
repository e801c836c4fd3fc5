"""YAML as plain values, in which no key may be given twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from yaml.nodes import MappingNode, Node


class DoubledKeyError(ValueError):
    """A mapping has a key twice."""


def load(text: str) -> Any:
    """The values of a YAML document.

    Raises:
        yaml.YAMLError: the text is not YAML.
        DoubledKeyError: a key is given twice, of which YAML would take the last.
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: dict[Any, Node]) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, Any]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise DoubledKeyError(
                        f"the key {key.value} is given twice, again in line {line}"
                    )
                seen.add((key.tag, key.value))
        return node
