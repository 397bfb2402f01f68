"""Links from a page to what lies outside ``docs/``, such as ``../adapruner/run.py``.

On a code host such a link opens the file. The project has no public address yet, so the site brings the file along: MyST makes a
download of a link to a file. Left to do here: a folder cannot be downloaded, so its link becomes its name; a page outside
``docs/`` that the site has too (``../CONTRIBUTING.md``) is opened there; and one that does not exist is a warning.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

#: A file of the repository -> the page that includes it.
PAGES = {"CONTRIBUTING.md": "contributing", "README.md": "index"}


class RepositoryLinks(SphinxTransform):
    """Runs before references are resolved, on what MyST left open."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """Every link out of ``docs/`` of one page."""
        source = Path(self.env.srcdir)
        for node in [*self.document.findall(addnodes.pending_xref), *self.document.findall(addnodes.download_reference)]:
            target, _, fragment = node.get("reftarget", "").partition("#")
            # Of a Markdown file outside docs/ MyST makes a page: its whole path, without the ending.
            target = f"{target}.md" if target.startswith("/") and node.get("refdomain") == "doc" else target
            path = Path(os.path.normpath(Path(self.env.doc2path(self.env.docname)).parent / target))
            if node.get("reftype") != "myst" or path.is_relative_to(source) or not path.is_relative_to(source.parent):
                continue
            name = path.relative_to(source.parent).as_posix()
            if name in PAGES:
                node.replace_self(self._page(node, PAGES[name], node.get("reftargetid") or fragment))
            elif path.is_dir():
                node.replace_self(node.children or [nodes.Text(name)])
            elif path.is_file() and path.suffix == ".md":
                download = addnodes.download_reference(reftarget=os.path.relpath(path, source), refdoc=self.env.docname, reftype="myst")
                download += node.children
                node.replace_self(download)

    def _page(self, node: nodes.Element, page: str, fragment: str) -> nodes.Element:
        """A link to a page of the site, and to a heading of it."""
        reference = addnodes.pending_xref(
            "", refdomain="doc", reftype="myst", reftarget=page, reftargetid=fragment or None, refexplicit=True, refdoc=self.env.docname
        )
        reference.source, reference.line = node.source, node.line
        reference += node.children
        return reference


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_transform(RepositoryLinks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
