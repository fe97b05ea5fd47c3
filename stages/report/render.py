"""Template + values -> one HTML file that needs nothing else: no network, no script.

Everything that comes from data is escaped by Jinja; markup that we made ourselves is passed as
`markupsafe.Markup`. The content security policy in base.html.jinja forbids scripts all the same; a
page that has its own overrides the block `policy`.
"""

from pathlib import Path
from typing import Any

from data_schemas.errors import InputError

_SHARED = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """The page that `template` makes of `values`; it may extend `base.html.jinja`.

    Raises:
        InputError: Jinja is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise missing(error) from error
    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def missing(error: ImportError) -> InputError:
    """The error for a library that pages need and that is not here."""
    return InputError(
        f"--html needs {error.name}, which is not installed. pip install 'reflogp[html]'."
    )
