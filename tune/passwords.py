"""Passwords in URLs: gcsr prints what it was given, in reports, errors and the line that resumes, so it takes none."""

import re

from gcsr import InvalidInputError

__all__ = ["refuse_password", "without_password"]

# A colon before a host's @ (one before a port and a path is none), and what Azure and databases take as parameters.
_PASSWORD = re.compile(
    r"(?P<user>://[^/@\s]*):(?!\d+/)[^@]+(?=@)|(?P<parameter>[?&][^=&\s]*(?:passwd|password|secret|sig)=)[^&]+"
)


def without_password(text: str) -> str:
    """The text, with the password left out of any URL in it."""
    return _PASSWORD.sub(lambda found: found["user"] or found["parameter"], text)


def refuse_password(field: str, text: str) -> None:
    """Raise if there is a URL with a password in the text.

    Raises:
        InvalidInputError: there is; the line does not repeat it.
    """
    if without_password(text) != text:
        raise InvalidInputError(
            f"{field}: a URL with a password is not allowed, as others see it in command lines and reports; expected "
            "the password in the environment (AWS_SECRET_ACCESS_KEY, PGPASSWORD, …) or a credentials file"
        )
