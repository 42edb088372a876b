"""Write benchmarks/result.schema.json from the values in benchmarks/results; run it after a change of them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.results.schema import result_schema

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "result.schema.json"


def main() -> None:
    """Write the schema."""
    PATH.write_text(json.dumps(result_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
