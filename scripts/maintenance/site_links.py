"""A hook of mkdocs: the site holds the documents of the root as well, and its links fit that.

The documents link each other as files of the repository. On the site `SECURITY.md` and its like lie in `project/`,
README is the home page, and files that are no documents are named instead of linked, as there is no repository to link
to.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT_DOCUMENTS = ("SECURITY.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "RELEASE.md")
FOLDER = "project"
HOME = {"README.md": "index.md", "docs": "index.md", "docs/decisions": "decisions/README.md"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of the root."""
    for name in ROOT_DOCUMENTS:
        files.append(File.generated(config, f"{FOLDER}/{name}", abs_src_path=str(REPOSITORY / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs passes all by keyword
    """Return the text with the links that the site needs."""
    return rewritten(markdown, page.file.src_uri, included(files))


def included(files: Iterable[File]) -> set[str]:
    """Return the paths of the files that the site will have; `exclude_docs` leaves some of the folder out."""
    return {file.src_uri for file in files if file.inclusion.is_included()}


def rewritten(markdown: str, source: str, pages: set[str]) -> str:
    """Return the text of a page with its links to files of the repository turned into links of the site.

    Args:
        markdown: As it stands in the repository.
        source: Path of the page on the site, such as `project/SECURITY.md`.
        pages: Paths of all files on the site.
    """

    def renewed(match: re.Match[str]) -> str:
        image, text, link = match.groups()
        path, mark, anchor = link.partition("#")
        if "://" in link or not path or link.startswith("mailto:"):
            return match[0]
        target = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(source)), path)))
        if target not in pages:
            return text if text.startswith("`") else f"{text} (`{in_repository(target)}`)"
        return f"{image}[{text}]({posixpath.relpath(target, posixpath.dirname(source) or '.')}{mark}{anchor})"

    return LINK.sub(renewed, markdown)


def in_repository(path: str) -> str:
    """Return where a page of the site lies in the repository."""
    folder, _, name = path.rpartition("/")
    if path.startswith("../"):
        return path.removeprefix("../")
    return name if folder == FOLDER else f"docs/{path}"


def site_path(path: str) -> str:
    """Return where a file of the repository lies on the site; `../` before it if it does not."""
    if path in HOME:
        return HOME[path]
    if path in ROOT_DOCUMENTS:
        return f"{FOLDER}/{path}"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}"
