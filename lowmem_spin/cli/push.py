"""An exported folder as a repository of the hub. Nothing is sent that was not asked for, and nothing but the folder."""

import re
from pathlib import Path

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from lowmem_spin.common.errors import InputError, quoted

DENIED = (401, 403)


def check_push(name: str, public: bool) -> None:
    """Refuse before anything is computed what the hub would not take afterwards.

    Args:
        name: USER/NAME.
        public: whether all are to see it.

    Raises:
        InputError: no such name, no token, no hub, or a repository that others see and that was to be private.
    """
    option = f"--push {quoted(name)}"
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if not re.fullmatch(r"[^/]+/[^/]+", name):
        raise InputError(f"{option}: no name of a repository; it looks like your-name/my-model")
    if get_token() is None:
        raise InputError(f"{option}: there is no token of the hub; set HF_TOKEN to one that may write, or run `hf auth login`")
    api = HfApi()
    try:
        api.whoami()
        private = api.repo_info(name).private
    except RepositoryNotFoundError:
        return
    except (httpx.HTTPError, OSError) as error:
        raise InputError(f"{option}: {_why(error)}") from None
    if private is not True and not public:
        raise InputError(f"{option}: it is there already, and public; add --public, or give another name")
    if private and public:
        raise InputError(f"{option}: it is there already, and private; make it public on its page, or leave out --public")


def push(folder: Path, name: str, public: bool, what: str) -> str:
    """Upload a folder, into a new repository or as a new commit of one that is there.

    Args:
        folder: as `export` wrote it.
        name: USER/NAME.
        public: whether all are to see it.
        what: it is, for the commit.

    Returns:
        Its address.

    Raises:
        InputError: the hub does not take it; the folder stays.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{what}, by lowmem-spin")
    except (httpx.HTTPError, OSError, ValueError) as error:  # the last of a model card that the hub does not accept
        again = f"`hf upload {name} {folder}` tries again"
        raise InputError(f"--push {quoted(name)}: {_why(error)}; what is exported is in {str(folder)!r}, and {again}") from None
    return f"{api.endpoint}/{name}"


def _why(error: Exception) -> str:
    """What the hub, or the network, has against it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in DENIED:
        return "the hub does not let this token write there; give HF_TOKEN one that may"
    if status is not None:
        return f"the hub answers {status}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, ValueError):
        return f"it is not accepted: {' '.join(str(error).split())[:200]}"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on; unset HF_HUB_OFFLINE"
    return f"the hub cannot be reached ({type(error).__name__}); see to the network"
