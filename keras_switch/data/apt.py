"""apt run apart from the system: lists and a cache of its own."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

# Lists and cache of its own, so that it needs no rights and changes nothing.
# Images for containers switch the translated descriptions off, and have hooks
# that empty the system's cache.
_CONFIGURATION = """\
#clear Acquire::Languages;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages {{ {languages} }};
Acquire::GzipIndexes "false";
Acquire::Retries "3";
Debug::NoLocking "true";
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
"""
# Root gives its rights up for downloads, to a user who can't write here.
_AS_ROOT = 'APT::Sandbox::User "root";\n'
_TARGETS = (
    "$(ORIGIN)|$(COMPONENT)|$(CREATED_BY)|$(SUITE)|$(VERSION)|$(FILENAME)"
)


class AptError(Exception):
    """What apt could not do."""


class Index(NamedTuple):
    """An index of Debian's main section that apt fetched.

    Args:
        suite: of the archive.
        version: of the archive.
        kind: `"Packages"` or `"Translations"`.
        path: of the file.
    """

    suite: str
    version: str
    kind: str
    path: str


@contextlib.contextmanager
def private_apt(
    folder: str | os.PathLike, languages: Sequence[str] = ("en",)
) -> Iterator[pathlib.Path]:
    """A context with a configuration of apt, in a temporary folder.

    Args:
        folder: where the caller keeps what it fetches, for messages.
        languages: of the descriptions of packages.

    Yields:
        The configuration's path, for `run_apt`. An `AptError` within the
        context becomes a `RuntimeError` that says what to do.

    Raises:
        RuntimeError: if apt is missing, or fails.
    """
    if not (shutil.which("apt-get") and shutil.which("apt-cache")):
        raise RuntimeError(_advise("apt-get must be installed.", folder))
    with tempfile.TemporaryDirectory() as private:
        try:
            yield _configure(pathlib.Path(private), languages)
        except AptError as error:
            raise RuntimeError(_advise(error, folder)) from None


def _advise(problem, folder):
    return (
        f"could not fetch from the Debian archive: {problem}\nThe download is "
        "needed once. It takes a Debian system whose apt sources name its main "
        f"section, and a network. Elsewhere, copy the folder {folder} from "
        "such a machine, or train on text files of your own."
    )


def _configure(private, languages):
    for name in ("lists/partial", "cache/archives/partial"):
        (private / name).mkdir(parents=True)
    listed = " ".join(f'"{language}";' for language in languages)
    text = _CONFIGURATION.format(folder=private, languages=listed)
    if os.geteuid() == 0:
        text += _AS_ROOT
    path = private / "apt.conf"
    path.write_text(text, encoding="utf-8")
    return path


def run_apt(
    configuration: pathlib.Path,
    command: str,
    *arguments: str,
    cwd: str | os.PathLike | None = None,
) -> subprocess.CompletedProcess:
    """Runs a command of apt.

    Args:
        configuration: from `private_apt`.
        command: `"apt-get"` or `"apt-cache"`.
        *arguments: its arguments.
        cwd: where it runs.

    Returns:
        What it did, with `stdout` and `stderr` as text.

    Raises:
        AptError: if it failed.
    """
    done = subprocess.run(
        [command, "-c", str(configuration), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        cwd=cwd,
    )
    if done.returncode:
        said = " ".join([command, *arguments])
        raise AptError(f"{said}: {reason(done.stderr)}")
    return done


def reason(said: str) -> str:
    """The first error that apt said; the later ones say what followed."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return [*errors, *lines, "(no message)"][0]


def debian_indexes(configuration: pathlib.Path) -> list[Index]:
    """The indexes of Debian's main section that `apt-get update` fetched.

    Args:
        configuration: from `private_apt`.

    Returns:
        Those of packages and of their descriptions, in a fixed order.
    """
    lists = run_apt(
        configuration, "apt-get", "indextargets", "--format", _TARGETS
    )
    found = []
    for line in sorted(lists.stdout.splitlines()):
        origin, component, kind, suite, version, path = line.split("|")
        wanted = kind in ("Packages", "Translations")
        if (origin, component) == ("Debian", "main") and wanted:
            found.append(Index(suite, version, kind, path))
    return found


def stanzas(paths: Iterable[str | os.PathLike]) -> Iterator[dict[str, str]]:
    """The fields of each stanza; lines that go on begin with a space.

    Args:
        paths: of indexes.

    Yields:
        A dict for each stanza.
    """
    for path in paths:
        stanza, name = {}, None
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.startswith(" "):
                    stanza[name] += "\n" + line.rstrip()
                elif line.strip():
                    name, _, value = line.partition(":")
                    stanza[name] = value.strip()
                else:
                    yield stanza
                    stanza = {}
        if stanza:
            yield stanza
