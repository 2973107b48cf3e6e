"""A Debian archive of a few packages in a folder, for a real apt."""

import gzip
import hashlib
import io
import tarfile

_ARCHITECTURE = "amd64"


def write_deb(path, content, name="data.tar.xz", control=""):
    """A `.deb` of the files in `content`, `{path: bytes}`."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": _tar({"control": control.encode()}, "gz"),
        name: _tar(content, name.rpartition(".")[2]),
    }
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for member, data in members.items():
            head = (
                f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}"
            )
            file.write(head.encode() + b"`\n" + data + b"\n" * (len(data) % 2))


def _tar(content, compression):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        folder = tarfile.TarInfo("./usr")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in content.items():
            if name.endswith(".gz"):
                data = gzip.compress(data)
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_archive(folder, packages, descriptions, origin="Debian"):
    """An archive, and a configuration that makes apt take no other.

    Args:
        folder: where.
        packages: `{name: (version, content)}`, to be downloaded.
        descriptions: `[(package, source, text)]`, in the indexes as well;
            text is as a control file has it.
        origin: what the archive says it is.

    Returns:
        The configuration's path, for `APT_CONFIG`.
    """
    stanzas, translations = [], []
    for name, (version, content) in packages.items():
        path = folder / f"{name}_{version}_all.deb"
        fields = f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
        fields += "Maintainer: nobody\nDescription: made up\n"
        write_deb(path, content, control=fields)
        data = path.read_bytes()
        fields += f"Filename: {path.name}\nSize: {len(data)}\n"
        stanzas.append(f"{fields}SHA256: {_digest(data)}\n")
    for name, source, text in descriptions:
        md5 = hashlib.md5(f"{text}\n".encode()).hexdigest()
        fields = f"Package: {name}\nSource: {source}\nVersion: 1\n"
        fields += "Architecture: all\nFilename: none\nSize: 1\n"
        fields += f"SHA256: {_digest(b'')}\nDescription: short\n"
        stanzas.append(f"{fields}Description-md5: {md5}\n")
        fields = f"Package: {name}\nDescription-md5: {md5}\n"
        translations.append(f"{fields}Description-en: {text}\n")
    _write_indexes(folder, "\n".join(stanzas), "\n".join(translations), origin)
    return _write_configuration(folder)


def _write_indexes(folder, packages, translations, origin):
    release = folder / "dists" / "made"
    lines = [f"Origin: {origin}", "Suite: made", "Codename: made"]
    lines += [
        "Version: 1",
        "Components: main",
        f"Architectures: {_ARCHITECTURE}",
    ]
    lines += ["Date: Wed, 25 Nov 2026 00:00:00 UTC", "SHA256:"]
    for name, text in (
        (f"main/binary-{_ARCHITECTURE}/Packages", packages),
        ("main/i18n/Translation-en", translations),
    ):
        path = release / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        data = path.read_bytes()
        lines.append(f" {_digest(data)} {len(data)} {name}")
    (release / "Release").write_text("\n".join(lines) + "\n")


def _write_configuration(folder):
    sources = folder / "sources.list"
    sources.write_text(f"deb [trusted=yes] file:{folder} made main\n")
    path = folder / "apt.conf"
    path.write_text(
        f'APT::Architecture "{_ARCHITECTURE}";\n'
        f'APT::Architectures {{ "{_ARCHITECTURE}"; }};\n'
        f'Dir::Etc::sourcelist "{sources}";\n'
        'Dir::Etc::sourceparts "/dev/null";\n'
        'Dir::State::status "/dev/null";\n'
        'Acquire::Languages "none";\n'
        'Acquire::Check-Valid-Until "false";\n'
    )
    return path


def _digest(data):
    return hashlib.sha256(data).hexdigest()
