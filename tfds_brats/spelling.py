"""The nearest name to one that is not known."""

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing where no name is near.

    Names are compared as a whole, and by what stands after their last point.
    """
    text, names = str(name), list(known)
    last = {other.rpartition(".")[2].lstrip("-"): other for other in names}
    matches = difflib.get_close_matches(text, names, n=1, cutoff=0.8)
    if not matches:
        leaf = text.rpartition(".")[2].lstrip("-")
        matches = [last[match] for match in difflib.get_close_matches(leaf, last, n=1)]
    return f"; did you mean {matches[0]}?" if matches else ""
