"""Coverage-guided fuzzing of the readers, with atheris. Run by hand.

    pip install atheris
    python tests/fuzz/fuzz.py "exam, JSON Lines" CORPUS -max_total_time=600 -rss_limit_mb=2048

CORPUS is a directory that is filled as it goes, and gone on from. A fault ends it with the input in ./crash-*.
"""

import pathlib
import sys
import tempfile

import atheris

with atheris.instrument_imports(
    include=["medkor_jax.data", "medkor_jax.io", "medkor_jax.eval", "medkor_jax.model.config"]
):
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import targets


def main():
    name, corpus, *options = sys.argv[1:]
    place = pathlib.Path(corpus)
    place.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(targets.READERS[name][2]):
        (place / f"good-{i}").write_bytes(data)
    with tempfile.TemporaryDirectory() as directory:
        atheris.Setup(
            [sys.argv[0], corpus, *options], lambda data: targets.read(name, data, directory)
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
