"""Template + values -> one self-contained HTML file, without network access or other files.

Jinja escapes everything that comes from data; reflogp's own markup is passed as
`markupsafe.Markup`. In addition, the content security policy in base.html.jinja forbids scripts. A
page with a script overrides the block `policy`.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.ownership import GENERATOR

_SHARED = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """Render `template` with `values`. The template can extend `base.html.jinja`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    generator = Markup(GENERATOR)  # noqa: S704 - our own, marks the page as reflogp's
    return environment.get_template(template.name).render(generator=generator, **values)


def require_libraries() -> None:
    """Check before any work that the libraries for pages and charts are installed.

    Raises:
        InputError: a library is not installed.
    """
    for name in ("jinja2", "matplotlib"):
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(
                f"pages and charts need {name}, which is not installed. Run pip install {name}."
            ) from error
