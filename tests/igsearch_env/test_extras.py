from __future__ import annotations

import pytest

from igsearch_env.extras import extra, import_extra


def test_what_is_missing_is_named_with_the_extra_that_has_it() -> None:
    message = r"no_such_module is needed here .*pip install \"igsearch-env\[serve\]\""
    with pytest.raises(ImportError, match=message), extra("serve"):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ImportError, match=message):
        import_extra("no_such_module", "serve")


def test_an_error_without_a_name_is_passed_on_in_words() -> None:
    message = r"a package is needed here \(libcudart is missing\)"
    with pytest.raises(ImportError, match=message), extra("train"):
        raise ImportError("libcudart is missing")


def test_what_is_there_is_imported() -> None:
    with extra("serve"):
        import json
    assert import_extra("json", "serve") is json
