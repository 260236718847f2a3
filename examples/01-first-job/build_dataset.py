"""Writes a chat dataset about Python's standard library, from the documentation that ships with it.

    python3 build_dataset.py --output train.jsonl

Needs nothing but Python 3.11 or newer and no network. One example per documented module, class,
function and method, answered in one house style: what it is, what its documentation says, where to
read more. The same Python version always writes the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# Named one by one: some modules of the standard library open a browser, print or start a GUI when
# they are imported. Those that this Python does not have are left out.
MODULES = """
abc argparse array ast asyncio asyncio.events asyncio.locks asyncio.queues asyncio.streams
asyncio.subprocess asyncio.tasks base64 bdb binascii bisect builtins bz2 calendar cmath cmd code
codecs codeop collections collections.abc colorsys compileall concurrent.futures
concurrent.futures.process concurrent.futures.thread configparser contextlib contextvars copy
copyreg csv ctypes dataclasses datetime decimal difflib dis doctest email email.charset
email.contentmanager email.generator email.header email.headerregistry email.message
email.parser email.policy email.utils enum errno filecmp fileinput fnmatch fractions ftplib
functools gc getopt getpass gettext glob graphlib gzip hashlib heapq hmac html html.parser http
http.client http.cookiejar http.cookies http.server imaplib importlib importlib.abc
importlib.machinery importlib.metadata importlib.resources importlib.util inspect io ipaddress
itertools json json.decoder json.encoder keyword linecache locale logging logging.config
logging.handlers lzma mailbox marshal math mimetypes mmap modulefinder multiprocessing
multiprocessing.connection multiprocessing.managers multiprocessing.pool
multiprocessing.shared_memory netrc numbers operator optparse os os.path pathlib pdb pickle
pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats py_compile pyclbr
pydoc queue quopri random re reprlib rlcompleter runpy sched secrets select selectors shelve
shlex shutil signal smtplib socket socketserver sqlite3 ssl stat statistics string stringprep
struct subprocess symtable sys sysconfig tarfile tempfile textwrap threading time timeit token
tokenize tomllib trace traceback tracemalloc types typing unicodedata unittest
unittest.async_case unittest.case unittest.loader unittest.mock unittest.result unittest.runner
unittest.suite urllib.error urllib.parse urllib.request urllib.response urllib.robotparser uuid
venv warnings wave weakref webbrowser wsgiref.handlers wsgiref.headers wsgiref.simple_server
wsgiref.util wsgiref.validate xml.dom xml.dom.minidom xml.dom.pulldom xml.etree.ElementTree
xml.parsers.expat xml.sax xml.sax.handler xml.sax.saxutils xml.sax.xmlreader xmlrpc.client
xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
""".split()  # noqa: SIM905 (as a list: 200 lines)

MIN_ANSWER = 25
MAX_ANSWER = 400

QUESTIONS = {
    "module": (
        "What is Python's module `{}` for?",
        "When would I use the module `{}` in Python?",
        "Describe the standard library module `{}`.",
    ),
    "class": (
        "What is Python's class `{}` for?",
        "What does an object of `{}` represent in Python?",
        "Describe the Python class `{}`.",
    ),
    "function": (
        "What does `{}` do?",
        "What does `{}` do in Python?",
        "Explain `{}` from Python's standard library.",
        "What is `{}` for in Python?",
    ),
}

_SIGNATURE = re.compile(r"^(async )?[\w.]+\(.*\)?( *-+> *.*)?$")
_ROLE = re.compile(r":[a-z:]+:`[~!]?([^`<]+?)(?: <[^>]*>)?`")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_NO_SENTENCE = ("http", "@", ":param", ":return", "..", "$", "|", "%", "#", "==", "--", "*")


WHAT_IT_IS = {
    "module": "`{name}` is a module of Python's standard library.",
    "class": "`{name}` is a class of Python's standard library, in the module `{owner}`.",
    "function": "`{name}` is a function of Python's standard library, in the module `{owner}`.",
    "method": "`{name}` is a method of the class `{owner}` in Python's standard library.",
}
READ_MORE = "Run `help('{name}')` in Python to read more."


class Entry(NamedTuple):
    """One documented thing."""

    kind: str
    name: str
    owner: str
    """The module or class it belongs to."""
    doc: str


def entries() -> Iterator[Entry]:
    """Everything public that has a documentation string."""
    for module_name in MODULES:
        module = _import(module_name)
        if module is None:
            continue
        if module.__doc__:
            yield Entry("module", module_name, "", module.__doc__)
        for name in sorted(_public(module)):
            member = getattr(module, name, None)
            if isinstance(member, type):
                yield from _class(f"{module_name}.{name}", module_name, member)
            elif inspect.isroutine(member) and isinstance(member.__doc__, str):
                yield Entry("function", f"{module_name}.{name}", module_name, member.__doc__)


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _public(module: ModuleType) -> list[str]:
    listed: list[str] | None = getattr(module, "__all__", None)
    return listed if listed is not None else [n for n in vars(module) if not n.startswith("_")]


def _class(name: str, module_name: str, member: type) -> Iterator[Entry]:
    if isinstance(member.__dict__.get("__doc__"), str):
        yield Entry("class", name, module_name, member.__dict__["__doc__"])
    for method_name, raw in sorted(vars(member).items()):
        method: Any = getattr(raw, "__func__", raw)  # what a classmethod or staticmethod wraps
        documented = inspect.isroutine(method) and isinstance(method.__doc__, str)
        if documented and not method_name.startswith("_"):
            yield Entry("method", f"{name}.{method_name}", name, str(method.__doc__))


def answer(doc: str) -> str:
    """The first paragraphs of a documentation string as running text; empty if there are none."""
    paragraphs: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        lines = block.splitlines()
        while lines and not paragraphs and _SIGNATURE.match(lines[0].strip()):
            lines.pop(0)
        if not lines and not paragraphs:
            continue
        text = _ROLE.sub(r"\1", " ".join(" ".join(lines).split())).replace("``", "`")
        is_prose = text[:1].isalpha() and not lines[0].startswith(" ") and ">>>" not in text
        is_prose = is_prose and not any(line.strip().startswith(_NO_SENTENCE) for line in lines)
        if not is_prose or len("\n\n".join([*paragraphs, text])) >= MAX_ANSWER:
            if is_prose and not paragraphs:
                paragraphs.append(_cut(text))
            break
        if text.endswith(":") and paragraphs:  # introduces a list or code that is left out
            break
        paragraphs.append(text if text.endswith((".", "!", "?")) else text.rstrip(" :;,") + ".")
    found = "\n\n".join(paragraphs)
    return found if len(found) >= MIN_ANSWER else ""


def _cut(text: str) -> str:
    """As many whole sentences as fit."""
    ends = [m.end() for m in _SENTENCE_END.finditer(text) if m.end() <= MAX_ANSWER]
    return text[: ends[-1]] if ends else ""


def examples() -> list[dict[str, Any]]:
    """The dataset: no question and no answer occurs twice; mixed, but always in the same order."""
    found: dict[str, tuple[str, str, str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is deprecated is documented all the same
        documented = list(entries())
    for entry in documented:
        reply = answer(entry.doc)
        if reply and reply not in found:
            digest = hashlib.sha256(entry.name.encode()).hexdigest()
            forms = QUESTIONS["function" if entry.kind == "method" else entry.kind]
            name = entry.name.removeprefix("builtins.")
            owner = entry.owner.removeprefix("builtins.")
            what = WHAT_IT_IS[entry.kind].format(name=name, owner=owner)
            whole = "\n\n".join([what, reply, READ_MORE.format(name=name)])
            question = forms[int(digest, 16) % len(forms)].format(name)
            found[reply] = (digest, question, whole)
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": whole},
            ]
        }
        for _, question, whole in sorted(found.values())
    ]


def main(argv: list[str]) -> int:
    """Write the file and say how many examples it has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("train.jsonl"), metavar="FILE")
    parser.add_argument("--limit", type=int, metavar="N", help="write at most N examples")
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    found = examples()[: options.limit]
    lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in found)
    options.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(found)} examples in {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
