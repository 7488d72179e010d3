"""Foreign code called without its log lines, and its errors told in one line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Without log lines, such as mmengine's on how every parameter was initialised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def reason(error: Exception) -> str:
    """Class and message of an error in one line of at most 300 characters."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
