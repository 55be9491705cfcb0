"""Numbers and names as people read them."""

__all__ = ["NONE", "lam_text", "method_text", "number", "percent", "probability"]

NONE = "–"
"""In place of a number that is not there."""


def lam_text(lam: float | None) -> str:
    """λ in the shortest form that reads back as the same number."""
    return NONE if lam is None else f"{lam:g}" if float(f"{lam:g}") == lam else repr(lam)


def method_text(mode: str, *, mu: float | None, gamma: int | str | None) -> str:
    """A mode with the μ or γ that it reads."""
    return mode + (f" γ={gamma}" if gamma is not None else f" μ={mu:g}" if mu is not None else "")


def number(value: float | None, digits: int = 3) -> str:
    """With so many digits after the point."""
    return NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None, half_width: float | None = None) -> str:
    """A fraction in percent, with its half interval if there is one."""
    if value is None:
        return NONE
    return f"{100 * value:.2f}" + (f" ± {100 * half_width:.2f}" if half_width is not None else "") + " %"


def probability(p: float | None) -> str:
    """A p-value."""
    return NONE if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"
