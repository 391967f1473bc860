"""The SPDX 2.3 bill of materials of a kit: its packages, every file, and what the libraries take from the system."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import uuid
from importlib import metadata
from pathlib import Path

import mrisr
from mrisr import environment

# Inside of OpenVINO's own libraries; versions and full texts are in its notices.
IN_OPENVINO = {
    "oneDNN": "Apache-2.0",
    "onnx": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "pugixml": "MIT",
    "xbyak": "BSD-3-Clause",
    "snappy": "BSD-3-Clause",
}
# soname -> package of the system that has it, licence.
SYSTEM = {
    "libc.so.6": ("glibc", "LGPL-2.1-or-later"),
    "libm.so.6": ("glibc", "LGPL-2.1-or-later"),
    "libdl.so.2": ("glibc", "LGPL-2.1-or-later"),
    "librt.so.1": ("glibc", "LGPL-2.1-or-later"),
    "libpthread.so.0": ("glibc", "LGPL-2.1-or-later"),
    "ld-linux-x86-64.so.2": ("glibc", "LGPL-2.1-or-later"),
    "ld-linux-aarch64.so.1": ("glibc", "LGPL-2.1-or-later"),
    "libstdc++.so.6": ("libstdc++", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "libgcc_s.so.1": ("libgcc", "GPL-3.0-or-later WITH GCC-exception-3.1"),
}
SYMBOLS = {"glibc": "GLIBC", "libstdc++": "GLIBCXX", "libgcc": "GCC"}


def machine_path(file: Path, root: Path) -> str | None:
    """A path that only the building machine has, of the checkout or of a package whose headers are compiled in, that
    `file` holds."""
    places = [root, *(Path(importlib.util.find_spec(p).origin).parent for p in ("openvino", "nlohmann_json"))]
    content = file.read_bytes()
    return next((str(place) for place in places if os.fsencode(place) in content), None)


def _readelf(*arguments: str | Path) -> str:
    tool = shutil.which("readelf")
    if tool is None:
        raise SystemExit("vendor-kit: readelf is not installed (binutils)")
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def libraries(folder: Path) -> list[Path]:
    """The shared libraries in a folder, each once."""
    return sorted(p for p in folder.iterdir() if ".so" in p.name and not p.is_symlink())


def needed(folder: Path) -> dict[str, set[str]]:
    """Package of the system -> sonames, of all that the libraries link and that is not beside them."""
    names = set()
    for library in libraries(folder):
        names |= set(re.findall(r"NEEDED.*\[(.*)\]", _readelf("-d", library)))
    table: dict[str, set[str]] = {}
    for name in sorted(names - {p.name for p in folder.iterdir()}):
        if name not in SYSTEM:
            raise SystemExit(
                f"vendor-kit: a library needs {name}, which is neither in the kit nor known to this script"
            )
        table.setdefault(SYSTEM[name][0], set()).add(name)
    return table


def oldest(folder: Path) -> dict[str, str]:
    """Package of the system -> the newest symbol version that the libraries ask it for: no older one will do."""
    text = "".join(_readelf("-V", library) for library in libraries(folder))
    key = lambda v: tuple(map(int, v.split(".")))  # noqa: E731
    table = {}
    for package, prefix in SYMBOLS.items():
        versions = re.findall(rf"\b{prefix}_(\d+(?:\.\d+)+)", text)
        if versions:
            table[package] = max(versions, key=key)
    return table


def system_needs(folder: Path) -> list[str]:
    """For people: what the machine has to bring."""
    versions = oldest(folder)
    return [
        f"{package} with the symbols {SYMBOLS[package]}_{versions[package]} or newer ({', '.join(sorted(names))})"
        if package in versions
        else f"{package} ({', '.join(sorted(names))})"
        for package, names in needed(folder).items()
    ]


def write(prefix: Path, name: str, model: str) -> Path:
    """sbom.spdx.json in `prefix`, which is complete but for it."""
    files = [p for p in sorted(prefix.rglob("*")) if p.is_file() and not p.is_symlink()]
    packages = _packages(prefix, model)
    entries = [_file(prefix, path) for path in files]
    relationships = _relationships(prefix, files, packages)
    _verify(packages, entries, relationships)
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([name, entries]))}",
        "creationInfo": {"created": _when(), "creators": [f"Tool: mrisr-vendor-kit-{mrisr.__version__}"]},
        "documentDescribes": ["SPDXRef-mrisr"],
        "packages": packages,
        "files": entries,
        "relationships": relationships,
    }
    path = prefix / "sbom.spdx.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def _verify(packages: list[dict], entries: list[dict], relationships: list[dict]) -> None:
    """The verification code (SPDX 2.3, 7.9) of every package that has files here."""
    sums = {entry["SPDXID"]: entry["checksums"][0]["checksumValue"] for entry in entries}
    for package in packages:
        problems = [
            sums[r["relatedSpdxElement"]]
            for r in relationships
            if r["relationshipType"] == "CONTAINS" and r["spdxElementId"] == package["SPDXID"]
        ]
        if problems:
            code = hashlib.sha1("".join(sorted(problems)).encode()).hexdigest()
            package["filesAnalyzed"] = True
            package["packageVerificationCode"] = {"packageVerificationCodeValue": code}


def _when() -> str:
    """SOURCE_DATE_EPOCH where it is set, as reproducible builds do."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc) if epoch else _now()
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _package(key: str, version: str, licence: str, supplier: str, **more: str) -> dict:
    return {
        "SPDXID": f"SPDXRef-{re.sub('[^A-Za-z0-9.-]', '-', key)}",
        "name": key,
        "versionInfo": version,
        "supplier": supplier,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": licence,
        "licenseDeclared": licence,
        "copyrightText": "NOASSERTION",
        **more,
    }


def _packages(prefix: Path, model: str) -> list[dict]:
    ours, versions = f"built from commit {environment.commit() or 'unknown'}", oldest(prefix / "lib")
    entries = [
        _package("mrisr", mrisr.__version__, "Apache-2.0", "NOASSERTION", comment=ours),
        _package(f"mrisr-weights-{model}", mrisr.__version__, "Apache-2.0", "NOASSERTION"),
        _package("openvino", metadata.version("openvino"), "Apache-2.0", "Organization: Intel Corporation"),
        _package("nlohmann-json", metadata.version("nlohmann-json"), "MIT", "Person: Niels Lohmann"),
        _package("oneTBB", _tbb(), "Apache-2.0", "Organization: UXL Foundation"),
    ]
    if any((prefix / "lib").glob("libhwloc.so.*")):
        entries.append(_package("hwloc", "as distributed with openvino", "BSD-3-Clause", "NOASSERTION"))
    for key, licence in IN_OPENVINO.items():
        entries.append(_package(key, "as built into openvino", licence, "NOASSERTION"))
    for key, names in needed(prefix / "lib").items():
        requirement = f"symbols up to {SYMBOLS[key]}_{versions[key]}" if key in versions else "any"
        comment = f"not in the kit: {', '.join(sorted(names))} of the system"
        licence = next(SYSTEM[n][1] for n in names)
        entries.append(_package(key, requirement, licence, "Organization: GNU", comment=comment))
    return entries


def _tbb() -> str:
    """As the package openvino states it, beside its libraries."""
    listed = next((f for f in metadata.files("openvino") or [] if f.name == "tbb.pc"), None)
    match = re.search(r"^Version: *(\S+)", listed.locate().read_text(), re.M) if listed else None
    return match[1] if match else "as distributed with openvino"


def _file(prefix: Path, path: Path) -> dict:
    content, name = path.read_bytes(), path.relative_to(prefix).as_posix()
    sums = [{"algorithm": a, "checksumValue": hashlib.new(a.lower(), content).hexdigest()} for a in ("SHA1", "SHA256")]
    return {
        "SPDXID": _file_id(name),
        "fileName": f"./{name}",
        "checksums": sums,
        "licenseConcluded": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }


def _file_id(name: str) -> str:
    return f"SPDXRef-File-{re.sub('[^A-Za-z0-9.-]', '-', name)}-{hashlib.sha1(name.encode()).hexdigest()[:8]}"


def _owner(path: Path, model: str) -> str:
    """The package that a file of the kit belongs to."""
    if path.name.startswith("libopenvino"):
        return "SPDXRef-openvino"
    if path.name.startswith("libtbb"):
        return "SPDXRef-oneTBB"
    if path.name.startswith("libhwloc"):
        return "SPDXRef-hwloc"
    return model if "bundles" in path.parts else "SPDXRef-mrisr"


def _relationships(prefix: Path, files: list[Path], packages: list[dict]) -> list[dict]:
    ids = {p["name"]: p["SPDXID"] for p in packages}
    weights = next(v for k, v in ids.items() if k.startswith("mrisr-weights-"))
    relations = [("SPDXRef-DOCUMENT", "DESCRIBES", ids["mrisr"])]
    for path in files:
        name = path.relative_to(prefix).as_posix()
        relations.append((_owner(path, weights), "CONTAINS", _file_id(name)))
    relations += [
        (ids["mrisr"], "DYNAMIC_LINK", ids["openvino"]),
        (ids["mrisr"], "STATIC_LINK", ids["nlohmann-json"]),
        (ids["mrisr"], "DEPENDS_ON", weights),
        (ids["openvino"], "DYNAMIC_LINK", ids["oneTBB"]),
    ]
    if "hwloc" in ids:
        relations.append((ids["oneTBB"], "DYNAMIC_LINK", ids["hwloc"]))
    relations += [(ids["openvino"], "STATIC_LINK", ids[name]) for name in IN_OPENVINO]
    relations += [(ids["mrisr"], "DYNAMIC_LINK", ids[name]) for name in needed(prefix / "lib")]
    keys = ("spdxElementId", "relationshipType", "relatedSpdxElement")
    return [dict(zip(keys, row)) for row in relations]
