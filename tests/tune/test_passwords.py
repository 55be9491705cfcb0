"""Passwords in URLs: found where they can stand, never printed."""

import sys

import pytest

from gcsr import InvalidInputError
from tune.endings import InterruptedRunError, resumable
from tune.passwords import refuse_password, without_password


@pytest.mark.parametrize(
    ("url", "without"),
    [
        ("s3://KEY:secret@bucket/x", "s3://KEY@bucket/x"),
        ("s3://KEY:sec/ret+@bucket/x", "s3://KEY@bucket/x"),
        ("abfs://:secret@account.blob.core.windows.net/x", "abfs://@account.blob.core.windows.net/x"),
        (
            "abfs://x@account/y?tenant_id=1&client_secret=secret&z=1",
            "abfs://x@account/y?tenant_id=1&client_secret=&z=1",
        ),
        ("postgresql+psycopg://me:12345@db:5432/x", "postgresql+psycopg://me@db:5432/x"),
        ("postgresql://me@db/x?password=se cret", "postgresql://me@db/x?password="),
        ("--storage=postgresql://me:se cret@db/x", "--storage=postgresql://me@db/x"),
    ],
)
def test_a_password_is_left_out(url, without):
    assert without_password(url) == without
    with pytest.raises(InvalidInputError, match="out: a URL with a password is not allowed") as refused:
        refuse_password("out", url)
    assert "sec" not in str(refused.value).partition("expected")[0]


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:5000&region=us-east-1",
        "hdfs://namenode:8020/user/me@home",
        "abfs://container@account.dfs.core.windows.net/x",
        "postgresql://me@db:5432/x",
        "gs://bucket/a:b@c",
        "/folder/a:b@c",
        "lam=[1e-3, 3e-3]",
    ],
)
def test_what_has_none_stays_as_it_is(url):
    assert without_password(url) == url
    refuse_password("out", url)


def test_the_line_that_resumes_holds_no_password(monkeypatch):
    words = ["gcsr", "search", "digits", "--out", "runs/x y", "--storage", "postgresql://me:secret@db/x"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.delenv("GCSR_RESUME_COMMAND", raising=False)
    with pytest.raises(InterruptedRunError) as interrupted, resumable(False):
        raise KeyboardInterrupt
    line = str(interrupted.value)
    assert "secret" not in line
    assert "gcsr search digits --out 'runs/x y' --storage postgresql://me@db/x --resume (without the password:" in line
