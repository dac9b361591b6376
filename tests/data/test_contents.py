import hashlib
import json
import os

from medkor_jax.data import contents
from medkor_jax.data.contents import (
    checksum,
    content_digest,
    file_digest,
    files_digest,
    hash_file,
    sha256_of,
)


def test_parts_count_as_one_text_and_lone_surrogates_are_text_too():
    assert (
        sha256_of(["열이 ", b"and ", memoryview(b"more")])
        == hashlib.sha256("열이 and more".encode()).hexdigest()
    )
    assert (
        sha256_of(["\ud800"])
        == hashlib.sha256("\ud800".encode("utf-8", "surrogatepass")).hexdigest()
    )
    assert sha256_of([]) == hashlib.sha256().hexdigest()


def test_a_checksum_knows_a_value_by_its_content_alone():
    """Sealed files and verdicts of finished runs hold these: they may never change."""
    assert checksum({"b": [1, None], "가": 0.1}) == checksum({"가": 0.1, "b": [1, None]})
    assert (
        checksum({"b": [1, None], "가": 0.1})
        == hashlib.sha256('{"b":[1,null],"가":0.1}'.encode()).hexdigest()
    )
    assert checksum([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def test_digests_of_files_and_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "_BLOCK_BYTES", 7)  # several blocks
    files = [tmp_path / name for name in ("a.txt", "b.txt")]
    for file in files:
        file.write_bytes(file.name.encode() * 10)
        os.utime(file, (1, 1))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert [hash_file(file) for file in files] == [file_digest(file) for file in files] == digests
    lines = "\n".join(f"{file.name} {digest}" for file, digest in zip(files, digests))
    assert files_digest(reversed(files), tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    rows = [("1", "\ud800"), ("2", json.dumps(None))]
    assert (
        content_digest(rows)
        == hashlib.sha256(
            "".join(f"{row!r}\n" for row in rows).encode("utf-8", "surrogatepass")
        ).hexdigest()
    )
