"""Tiny runs of all phases on disks that are too small, then enlarged; compared with one that always had room. Run by hand, as root.

    python tests/run/full_disk.py BASE OUT --disks 20 --seed 0

BASE: a directory of tiny weights (tests/conftest.py makes one: `tiny_base_dir`). Each run directory is a tmpfs of a size drawn below
what the run needs. Good is: one sentence that says so, and the uninterrupted numbers once there is room. What is not is kept in OUT.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys

from kill_anywhere import outcome, start, uninterrupted


def mount(directory, size_kb, *, again=False):
    directory.mkdir(exist_ok=True)
    options = f"{'remount,' if again else ''}size={size_kb}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out, randomly, n_faults = arguments.out.resolve(), random.Random(arguments.seed), 0
    whole, _ = uninterrupted(out, arguments.base)
    needed_kb = int(subprocess.check_output(["du", "-sk", whole]).split()[0])
    for number in range(arguments.disks):
        disk = out / f"disk-{number}"
        size_kb = randomly.randrange(20, needed_kb)
        mount(disk, size_kb)
        log = pathlib.Path(f"{disk}.log")
        log.unlink(missing_ok=True)  # of an earlier attempt
        try:
            code = start(disk, arguments.base).wait()
            said = log.read_text()
            last = said.strip().splitlines()[-1]
            is_told = code == 1 and last.startswith("medkor: ")
            wrong = "" if is_told or code == 0 else f"exit code {code}"  # 0: there was room
            if "Traceback" in said:
                wrong += " a traceback"
            mount(disk, 2**20, again=True)
            if code := start(disk, arguments.base).wait():
                wrong += f" did not go on: {code}, {log.read_text().strip().splitlines()[-1]}"
            elif outcome(disk) != outcome(whole):
                wrong += " another result"
        finally:
            subprocess.run(["umount", disk], check=True)
        n_faults += bool(wrong)
        print(json.dumps(dict(disk=number, kb=size_kb, said=last[:400], wrong=wrong)), flush=True)
    print(f"{arguments.disks} disks, {n_faults} faults")
    sys.exit(1 if n_faults else 0)


if __name__ == "__main__":
    main()
