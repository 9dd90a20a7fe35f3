"""The end of gpu.sh: what its parts have written, as one file gpu.json, and how each of them ended.

python benchmarks/gpu_report.py FOLDER PART...
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import json
import sys

from measure import write_json

from ssl.console import table


def collect(folder: Path, parts: list[str]) -> dict:
    """By part: how it ended, and what it measured, which is null where it came to nothing."""
    found = {}
    for part in parts:
        state = json.loads((folder / f"{part}.state.json").read_text())
        path = folder / f"{part}.json"
        found[part] = state | {"results": json.loads(path.read_text()) if path.exists() else None}
    return found


def main() -> None:
    folder, *parts = sys.argv[1:]
    found = collect(Path(folder), parts)
    write_json(Path(folder, "gpu.json"), found)
    rows = [["part", "seconds", ""], *([part, str(own["seconds"]), own["state"]] for part, own in found.items())]
    print(f"\n{table(rows)}\n\nnumbers     {Path(folder, 'gpu.json')}")


if __name__ == "__main__":
    main()
