"""The docs corpus: prose without code."""

from mini_undivided.support.docs import clean


def test_cleaning_keeps_prose_and_drops_code():
    """Cleaning keeps paragraphs, without their markup.

    Examples, signatures, tables and lists of parameters go.
    """
    text = """func(a, b=None, *, c=3) -> int

    Return the sum of ``a`` and *b* as it is
    computed by :func:`operator.add`, and nothing else.

    >>> func(1, 2) if True else func(3, 4)
    3

    ====  ====
    a     b
    ====  ====

    x = 1; y = 2; z = x + y; print(z)
    """
    assert (
        clean(text)
        == "Return the sum of a and b as it is computed by operator.add, and nothing else."
    )
