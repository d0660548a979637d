"""bin/cache push and pull: a dataset in a remote store."""

import sys
from pathlib import Path

import click

from cache.console import Console, command, examples
from cache.entries import StoreError
from cache.inspect_command import store_option
from cache.remote_url import protocol_of
from cache.tables import of_store


@command(
    name="push",
    kept=True,
    epilog=examples("bin/cache push demo s3://my-bucket/headstart", "bin/cache push demo file:///mnt/backup/headstart"),
)
@click.argument("name")
@click.argument("url", metavar="URL")
@store_option
def push_command(name: str, url: str, store: Path) -> None:
    """Send a dataset to a remote store.

    With all that it was made from, compressed. What is there already is not sent again: repeat an interrupted push, and
    it goes on. Of what is there only the beginning is read; pull reads all of it, and names an object that is damaged:
    remove that object and push again, which sends it anew. The URL is a folder of an object store (s3://, gs://, az://)
    or of this machine (file:///). Credentials come from the environment alone. A dataset of the same name there is
    replaced.
    """
    protocol_of(url)  # before it is repeated
    console = Console(sys.stdout)
    console.line(f"Pushing {name} of {store} to {url}")
    try:
        from cache.push import push_dataset  # after the first line, so that nobody waits in silence
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None

    done = push_dataset(store, name, url, console)
    console.line(
        f"Done in {console.since_start():.2f} s: {done.entries} of {done.of_entries} entries sent, "
        f"{done.file_bytes:,} bytes{'; the others were there' * (done.entries < done.of_entries)}. Where it is needed: "
        f"bin/cache pull {url} {name}"
    )


@command(
    name="pull",
    kept=True,
    epilog=examples(
        "bin/cache pull s3://my-bucket/headstart demo", "bin/cache pull https://example.org/headstart demo --as theirs"
    ),
)
@click.argument("url", metavar="URL")
@click.argument("name")
@click.option("--as", "rename", metavar="NEWNAME", help="Name the dataset so, and not as it is named there.")
@store_option
def pull_command(url: str, name: str, rename: str | None, store: Path) -> None:
    """Take a dataset from a remote store.

    From where bin/cache push sent it, or from a web server that shows such a folder (https://). Each array is checked
    against its MD5 before it appears. What the store holds already is not fetched again: repeat an interrupted pull,
    and it goes on. Credentials come from the environment alone.
    """
    protocol_of(url)  # before it is repeated
    console = Console(sys.stdout)
    console.line(f"Pulling {name} from {url} into {store}")
    try:
        from cache.pull import pull_dataset  # after the first line, so that nobody waits in silence
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None

    done = pull_dataset(url, name, store, rename, console)
    console.line(
        f"Done in {console.since_start():.2f} s: {done.entries} of {done.of_entries} entries fetched, "
        f"{done.file_bytes:,} bytes{'; the others were here' * (done.entries < done.of_entries)}. Look at it: "
        f"bin/cache show {done.name}{of_store(store)}"
    )


def _not_installed(error: ModuleNotFoundError) -> StoreError:
    return StoreError(f"a remote store needs a Python package that is not installed ({error}): bin/install remote")
