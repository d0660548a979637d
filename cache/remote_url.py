"""URLs of remote stores: which there are, what has to be installed for them, and where their credentials come from."""

from pathlib import Path
from urllib.parse import urlsplit

from cache.entries import StoreError

WRITABLE = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER or file:///FOLDER"
INSTALL = {  # how, by protocol
    "s3": "bin/install remote",
    "gs": ".venv/bin/pip install -c constraints.txt gcsfs",
    "az": ".venv/bin/pip install -c constraints.txt adlfs",
    "http": "bin/install remote",
    "https": "bin/install remote",
    "file": "bin/install remote",
}
CREDENTIALS = {
    "s3": "the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a server that is not "
    "Amazon's also AWS_ENDPOINT_URL",
    "gs": "the environment: GOOGLE_APPLICATION_CREDENTIALS, the path of a key file",
    "az": "the environment: AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or "
    "AZURE_STORAGE_CONNECTION_STRING",
    "http": "the file ~/.netrc",
    "https": "the file ~/.netrc",
}


def protocol_of(url: str) -> str:
    """The protocol of a remote store's URL. Raises StoreError, which repeats no password."""
    protocol, mark, rest = url.partition("://")
    if not mark or protocol not in INSTALL or not rest.strip("/") or "::" in url:
        raise StoreError(f"{url}: not the URL of a remote store; write {WRITABLE}, or to pull from https://HOST/FOLDER")
    if protocol == "file":
        if not rest.startswith("/"):
            raise StoreError(f"{url}: three slashes are needed before the path: file://{Path.cwd() / rest}")
    elif urlsplit(url).password is not None or "?" in url or "#" in url:
        raise StoreError(
            f"{protocol}://…: neither credentials nor options stand in this URL, which others get to see. Credentials "
            f"come from {CREDENTIALS[protocol]}"
        )
    return protocol
