"""`imports=` and `need=`: what is accepted, and what `__main__` holds while a rank runs."""

from __future__ import annotations

import sys

import pytest

from rankexec._gang import namespace


@pytest.fixture
def main(monkeypatch):
    """A `__main__` of its own, to be written to."""
    module = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module.__dict__


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("", ""),
        ("  \n  ", ""),
        ("import os", "import os"),
        ("import os.path", "import os.path"),
        ("import os.path as p, sys", "import os.path as p, sys"),
        ("from os import path as p", "from os import path as p"),
        ("from os.path import *", "from os.path import *"),
        ("import os; import sys", "import os\nimport sys"),
        ("import os\nimport sys", "import os\nimport sys"),
        ("import os\n    import sys\n", "import os\nimport sys"),
        (
            "\n    import os\n\n    # a comment\n    import sys  # and one\n",
            "import os\nimport sys",
        ),
        ("from os import (\n    path,\n    sep,\n)", "from os import path, sep"),
        ("from os import path, \\\n    sep", "from os import path, sep"),
    ],
)
def test_parse_imports(source, parsed):
    """Import statements in every form, one a line or several, however they are indented."""
    assert namespace.parse_imports(source) == parsed


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "takes import statements only, got 'x = 1'"),
        ("import os\nprint(os)", "takes import statements only, got 'print(os)'"),
        ("import os; os.sep", "got 'os.sep'"),
        ("'import os'", "import statements only"),
        ("numpy", "got 'numpy'"),
        ("if True: import os", "import statements only"),
        ("from os import (path", "imports does not parse"),
        ("import", "imports does not parse"),
        ("import os sys", "imports does not parse"),
    ],
)
def test_not_an_import(source, said):
    """Anything else is a ValueError that shows it."""
    with pytest.raises(ValueError, match="imports") as caught:
        namespace.parse_imports(source)
    assert said in str(caught.value)


@pytest.mark.parametrize("source", [None, 3, ["import os"], b"import os"])
def test_imports_takes_a_string(source):
    """Nothing but a string."""
    with pytest.raises(TypeError, match="imports takes a string of import statements"):
        namespace.parse_imports(source)


def test_run_imports(main):
    """They are run in `__main__`."""
    namespace.run_imports("import os.path as p\nfrom json import dumps")
    assert main["p"].basename("a/b") == "b"
    assert main["dumps"]([]) == "[]"
    namespace.run_imports("")


def test_with_imports(main):
    """In the caller the names are there while its rank runs, and not longer."""
    with namespace.with_imports("import json\nfrom os.path import *"):
        assert main["json"].dumps([]) == "[]"
        assert main["basename"]("a/b") == "b"
    assert "json" not in main
    assert "basename" not in main
    with namespace.with_imports(""):
        assert "json" not in main


def test_with_imports_leaves_the_users_names_alone(main):
    """What the user has under such a name stays, during and after."""
    main["json"] = mine = object()
    with namespace.with_imports("import json, os"):
        assert main["json"] is mine
        assert "os" in main
    assert main["json"] is mine
    assert "os" not in main


def test_with_imports_after_a_failure(main):
    """Also if the rank raises."""
    with pytest.raises(KeyError), namespace.with_imports("import json"):
        raise KeyError
    assert "json" not in main


@pytest.mark.parametrize("names", ["a b", "a,b", " a, b ", ["a", "b"], ("b", "a"), "a b a"])
def test_need(main, names):
    """Names in a string, between spaces or commas, or a list of them."""
    main.update(a=1, b=2, c=3)
    assert namespace.find_needed(names) == {"a": 1, "b": 2}


def test_need_nothing(main):
    """An empty string is no name."""
    assert namespace.find_needed("") == {}
    assert namespace.find_needed([]) == {}


def test_need_what_is_not_there(main):
    """It says which name is missing."""
    with pytest.raises(NameError, match="need names 'b', which is not defined in __main__"):
        namespace.find_needed("b")
    with pytest.raises(TypeError, match="need takes names, got 3"):
        namespace.find_needed([3])


def test_set_in_main(main):
    """Needed names are set in a rank's `__main__`."""
    namespace.set_in_main({"a": 1})
    assert main["a"] == 1
