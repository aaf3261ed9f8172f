"""Errors as the page and the call report them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from ldm.util import UserError


@contextmanager
def report_errors() -> Iterator[None]:
    """Turns every error of this block into a gr.Error of one sentence. An error that is not the user's is also logged,
    with its traceback."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        message = "something went wrong on the server, through no fault of yours: its log has the details"
        raise gr.Error(message, duration=None, print_exception=False) from error
