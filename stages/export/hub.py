"""An exported folder -> a data set on the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from reflogp.data_schemas.errors import InputError, ReflogpError

_INSTEAD = (
    "Or write it to disk with --format parquet, and upload the folder from where the hub can be "
    "reached: hf upload OWNER/NAME FOLDER --repo-type dataset"
)


def require_login(name: str, api: HfApi) -> None:
    """Fail before the work begins if nothing can be pushed to the data set `name`.

    Raises:
        InputError: it is no name of a data set, or nobody is logged in.
        ReflogpError: the hub cannot be reached.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--output {name}: no name of a data set on the hub: {error}") from error
    if name.count("/") != 1:
        raise InputError(f"--output {name}: with --format hub, give it as owner/name.")
    with _asking(name):
        api.whoami()


def push(folder: Path, name: str, api: HfApi, *, public: bool) -> str:
    """Upload `folder` as the data set `name`, in place of the rows that it had; its address.

    Args:
        folder: as `export` writes it.
        name: owner/name; made if it is not there.
        api: of the hub.
        public: whether a data set that is made can be seen by all.

    Raises:
        InputError: the account that is logged in may not write there.
        ReflogpError: the hub cannot be reached, or fails.
    """
    with _asking(name):
        url = api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            delete_patterns="data/*",
            commit_message="Preferences with reference log-probs, exported by reflogp",
        )
    return str(url)


@contextmanager
def _asking(name: str) -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise InputError(
            f"--output {name}: nobody is logged in to the hub. Run `hf auth login`, or set "
            f"HF_TOKEN to a token that may write. {_INSTEAD}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise InputError(
                f"--output {name}: the hub refuses ({status}): {error.server_message or error}. "
                f"Check the name, and that your token may write there. {_INSTEAD}"
            ) from error
        raise ReflogpError(f"--output {name}: the hub failed ({status}). {_INSTEAD}") from error
    except (OSError, HTTPError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ReflogpError(
            f"--output {name}: the hub cannot be reached: {reason}. {_INSTEAD}"
        ) from error
