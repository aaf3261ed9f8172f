"""The line of the page that says what happens, as HTML."""

from __future__ import annotations

import html

from ldm.web.worker import Progress


def status_line(message: str, progress: Progress | None = None) -> str:
    """HTML for eyes and screen readers, with a bar if there is progress to show."""
    bar = f'<progress value="{progress.step}" max="{progress.total}"></progress>' if progress else ""
    return f'<div class="line" role="status"><span>{html.escape(message)}</span>{bar}</div>'


def error_line(message: str) -> str:
    """The status while something is wrong; the next status replaces it."""
    return f'<div class="line wrong" role="alert"><span>{html.escape(message)}</span></div>'
