"""Write the notebook of an example: the cells of a script with `# %%` marks, without outputs.

    cd docs/examples
    python ../../scripts/maintenance/make_notebook.py 01_values_in_python.py values_in_python.ipynb

The script is the source; a test compares both and runs the notebook.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

MARK = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def cells_of(script: str) -> list[tuple[str, str]]:
    """Return the kind (`code`, `markdown`) and the text of each cell; the script's docstring is the first one."""
    parts = MARK.split(script)
    docstring = parts[0].strip().strip('"').strip()
    cells = [("markdown", "# " + docstring)]
    for mark, text in zip(parts[1::2], parts[2::2], strict=True):
        if mark:
            cells.append(("markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            cells.append(("code", text.strip()))
    return cells


def notebook_of(script: str) -> Any:
    """Return the notebook of a script, with ids that depend on nothing but the order of its cells."""
    from nbformat import v4

    made = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell}
    cells = [made[kind](text, id=f"cell-{index}") for index, (kind, text) in enumerate(cells_of(script))]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return v4.new_notebook(cells=cells, metadata=kernel)


def main(arguments: list[str] | None = None) -> None:
    """Write the notebook."""
    import nbformat

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("notebook", type=Path)
    options = parser.parse_args(arguments)
    options.notebook.write_text(nbformat.writes(notebook_of(options.script.read_text("utf-8"))) + "\n", "utf-8")


if __name__ == "__main__":
    main()
