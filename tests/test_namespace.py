"""`imports=` and `need=`: what is accepted, and what `__main__` holds while a rank runs."""

from __future__ import annotations

import sys

import pytest

from rankexec._gang import namespace


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
        ("from os import (path as p, sep as s,)", "from os import path as p, sep as s"),
        ("import os.path, json.decoder as d", "import os.path, json.decoder as d"),
        ("from __future__ import annotations", "from __future__ import annotations"),
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
        ("import os\nimprot numpy as np\nimport sys", "does not parse: 'improt numpy as np'"),
        ("from os import (path,\n  sep\nimport sys", "does not parse: 'from os import (path,'"),
        ("import", "does not parse: 'import'"),
        ("import os sys", "does not parse: 'import os sys'"),
        ("import os\0", "imports does not parse"),
        ("from __future__ import no_such_feature", "imports does not parse"),
        ("import os\nfrom __future__ import annotations", "imports does not parse"),
        ("from . import helpers", "absolute imports only: no package, got 'from . import helpers'"),
        ("from .helpers import *", "got 'from .helpers import *'"),
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


def test_with_imports_keeps_what_the_rank_has_set(main):
    """What the function has made of such a name is the user's."""
    with namespace.with_imports("import json, os, re"):
        main["json"] = None
        del main["os"]
    assert main["json"] is None
    assert "os" not in main
    assert "re" not in main


def test_keep_imports(main):
    """They stay in `__main__`, without what the user has there already."""
    main["os"] = mine = object()
    assert set(namespace.keep_imports("import json, os")) == {"json"}
    assert main["os"] is mine
    assert main["json"].dumps([]) == "[]"
    assert namespace.keep_imports("") == {}
    assert "__builtins__" not in main


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


@pytest.mark.parametrize(
    "imports",
    [
        ["import os.path as p, json", "from math import (floor,", "  ceil as up)"],
        "import os.path as p, json\nfrom math import (floor,\n  ceil as up)",
    ],
)
def test_global_imports(main, imports):
    """Import statements, a list or a string, run in a namespace; in `__main__` without one."""
    ns: dict[str, object] = {"json": "mine"}
    namespace.global_imports(imports, ns)
    assert sorted(ns) == ["floor", "json", "p", "up"], "and nothing else"
    assert ns["json"].dumps([]) == "[]"
    assert "p" not in main
    namespace.global_imports(imports)
    assert main["up"](1.5) == 2


def test_global_imports_runs_nothing_else(main):
    """A line that is no import is an error, and no line has run."""
    with pytest.raises(ValueError, match="does not parse: 'improt json'"):
        namespace.global_imports(["import os", "improt json"])
    with pytest.raises(ValueError, match=r"got 'main.clear\(\)'"):
        namespace.global_imports(["import os", "main.clear()"])
    assert "os" not in main
    for wrong in (None, 3, b"import os", ["import os", 3]):
        with pytest.raises(TypeError, match="imports takes a list of strings"):
            namespace.global_imports(wrong)


def test_import_star(main):
    """All public names of modules, where a function could not import them with a star."""
    ns: dict[str, object] = {}
    namespace.import_star(["os.path", "json"], ns)
    assert ns["join"]("a", "b") == "a/b"
    assert ns["dumps"]([]) == "[]"
    assert not any(name.startswith("_") for name in ns)
    namespace.import_star(["json"])
    assert main["dumps"] is ns["dumps"]


def test_import_star_of_a_module_without_all(main, monkeypatch):
    """Names with an underscore are not among them, unless the module says so."""
    module = type(sys)("starred")
    vars(module).update(shown=1, _hidden=2)
    monkeypatch.setitem(sys.modules, "starred", module)
    namespace.import_star(["starred"])
    assert (main["shown"], main.get("_hidden")) == (1, None)
    module.__all__ = ["_hidden"]
    namespace.import_star(["starred"], only := {})
    assert only == {"_hidden": 2}


@pytest.mark.parametrize(
    ("modules", "error"),
    [
        ("json", TypeError),
        (None, TypeError),
        (["json", 3], TypeError),
        (["json as j"], ValueError),
        (["json import dumps; import os #"], ValueError),
        ([""], ValueError),
        ([".json"], ValueError),
    ],
)
def test_import_star_takes_names(main, modules, error):
    """Anything else is an error that names the argument."""
    with pytest.raises(error, match="modules takes"):
        namespace.import_star(modules)
    assert "dumps" not in main
