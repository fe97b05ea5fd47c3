"""Template + values -> one HTML file that needs nothing else: no network, no other file.

Everything that comes from data is escaped by Jinja; markup that we made ourselves is passed as
`markupsafe.Markup`. The content security policy in base.html.jinja forbids scripts all the same; a
page that has its own overrides the block `policy`.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.ownership import GENERATOR

_SHARED = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """The page that `template` makes of `values`; it may extend `base.html.jinja`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    generator = Markup(GENERATOR)  # noqa: S704 - our own, by which the page is known as ours
    return environment.get_template(template.name).render(generator=generator, **values)


def require_libraries() -> None:
    """Look for what pages and charts are made with, before any work is done.

    Raises:
        InputError: a library is not installed.
    """
    for name in ("jinja2", "matplotlib"):
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(
                f"pages and charts need {name}, which is not installed. "
                "pip install 'reflogp[html]'."
            ) from error
