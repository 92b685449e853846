"""From templates and values to one HTML page; every value is escaped."""

import functools
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Fill a template of `report/templates`; a name that it asks for and does not get is an error."""
    return _environment().get_template(template).render(**values) + "\n"


@functools.cache
def _environment() -> jinja2.Environment:
    """The templates are compiled once."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxcxr.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: "without limit" if value is None else f"{value:.4g}"
    environment.filters["percent"] = lambda value: f"{100 * value:.3g}"
    return environment
