"""README.md and docs/ are true to the project: file tree, links, scripts and their options, citation."""

import re

import pytest

import mediation
from tests.helpers import PROJECT

PAGES = [PROJECT / "README.md", *sorted(PROJECT.glob("docs/*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
SCRIPTS = sorted(path.name for path in PROJECT.glob("*.py") if "__main__" in path.read_text("utf-8"))
BRANCH = re.compile(r"((?:│   |    )*)[├└]── (\S+)  +(\S.*)")
OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
CODE_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def tree_paths(text):
    """The paths of a tree whose first line is its root folder, "mediation/"; a folder's name ends in /.

    Raises:
        AssertionError: a line that is no branch with a purpose behind it, or a path that is there twice.
    """
    root, *lines = text.splitlines()
    parents, paths = [root], []
    for line in lines:
        branch = BRANCH.fullmatch(line)
        assert branch, f"no branch with a purpose: {line!r}"
        indent, name, _ = branch.groups()
        parents[1 + len(indent) // 4:] = [name]
        paths.append("".join(parents))
    assert len(paths) == len(set(paths)), "a path is there twice"
    return paths


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """(script, arguments) of every `python script.py ...` of a page."""
    return re.findall(r"python (\w+\.py)([^\n`#]*)", page.read_text(encoding="utf-8"))


def canonical(option):
    """-do-filter and --do_filter are one option: "do_filter", as `options.Parser` reads it."""
    return option.lstrip("-").replace("-", "_")


def test_the_tree_has_every_file_of_the_library_and_no_other():
    tree = re.search(r"^```\n(mediation/\n.*?)\n```$", README, re.DOTALL | re.MULTILINE)[1]
    library = PROJECT / "mediation"
    # an __init__.py says what its folder is for; the folder itself has a line
    files = {path for path in library.rglob("*.py") if path.name != "__init__.py"}
    folders = {folder for file in files for folder in file.parents if library in folder.parents}
    expected = {f"{path.relative_to(PROJECT)}" for path in files}
    expected |= {f"{path.relative_to(PROJECT)}/" for path in folders}
    assert set(tree_paths(tree)) == expected


def test_a_tree_says_what_each_path_is_for():
    tree = "a/\n├── b/     purpose\n│   └── c.py   purpose\n└── d.py  purpose"
    assert tree_paths(tree) == ["a/b/", "a/b/c.py", "a/d.py"]
    for wrong in ("a/\n├── b.py", "a/\n├── b.py  purpose\n└── b.py  purpose"):
        with pytest.raises(AssertionError):
            tree_paths(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


def test_every_page_can_be_reached_from_the_readme():
    reached, ahead = set(), [PAGES[0]]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        names = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
        links = {(page.parent / name).resolve() for name in names}
        ahead += [link for link in links - reached if link.exists()]
    assert not set(PAGES) - reached


def test_the_readme_names_every_script():
    assert not [script for script in SCRIPTS if f"`{script}" not in README]


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_have_the_options_that_the_script_takes(script, run_script):
    code, text, _ = run_script(script, "--help")
    assert code == 0
    known = {canonical(option) for option in OPTION.findall(text.partition("options:")[2])}
    for page in PAGES:
        for name, arguments in commands(page):
            if name == script:
                used = {canonical(option) for option in OPTION.findall(arguments)}
                assert used <= known, f"{page.name}: python {name}{arguments}"


def test_commands_are_those_of_scripts():
    assert {name for page in PAGES for name, _ in commands(page)} <= set(SCRIPTS)


def test_the_citation_is_the_same_everywhere():
    citation = (PROJECT / "CITATION.cff").read_text(encoding="utf-8")
    title, version, author = (re.search(rf"^ *-? ?{key}: (.+)$", citation, re.MULTILINE)[1].strip('"')
                              for key in ("title", "version", "name"))
    year = re.search(r"^date-released: (\d{4})", citation, re.MULTILINE)[1]
    software = re.search(r"@software\{.*?^\}", README, re.DOTALL | re.MULTILINE)[0]
    fields = dict(re.findall(r"^  (\w+) += \{+(.*?)\}+,?$", software, re.MULTILINE))
    assert fields == {"title": title, "author": author, "version": version, "year": year}
    assert version == mediation.__version__


def test_the_tests_that_pages_name_exist():
    files = {f"{path.relative_to(PROJECT / 'tests')}" for path in PROJECT.glob("tests/**/*.py")}
    functions = set()
    for file in files:
        text = (PROJECT / "tests" / file).read_text("utf-8")
        functions |= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
    for page in PAGES:
        for file, function in re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)?(?:::)?(test_\w+)?`",
                                         page.read_text("utf-8")):
            assert not file or file in files, f"{page.name}: {file}"
            assert not function or function in functions, f"{page.name}: {function}"
