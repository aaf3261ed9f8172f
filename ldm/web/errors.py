"""Errors as the page and the call report them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from ldm.util import UserError


def sentence_of(error: Exception) -> str:
    """What to say of an error. One that is not the user's is logged, with its traceback."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return "something went wrong on the server, through no fault of yours: its log has the details"


@contextmanager
def report_errors() -> Iterator[None]:
    """Turns every error of this block into a gr.Error of one sentence, for a call."""
    try:
        yield
    except Exception as error:
        raise gr.Error(sentence_of(error), duration=None, print_exception=False) from error
