"""Sheets of verdicts: what is written is read, and what is wrong is said with file and line."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.errors import UserError
from pit_jax.evaluation import verdict_files

PAGE = "page-0123456789abcdef"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.from_regex(r"[A-Za-z][\w ;,'\"-]{0,20}", fullmatch=True).map(lambda n: n.strip())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("sheets") / "ana.csv"


def read(path, content, count=3, ties=True):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return verdict_files.read(str(path), PAGE, count, ties)


def rows_of(text):
    return list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4),
    st.data(),
    NAMES,
    st.sampled_from(",;\t"),
    st.booleans(),
)
def test_a_sheet_that_is_filled_in_is_read(path, comparisons, data, name, separator, marked):
    """As a spreadsheet gives it back: other separators, columns moved and added, case, spaces."""
    header, *rows = rows_of(verdict_files.empty(PAGE, comparisons))
    for row, texts in zip(rows, comparisons, strict=True):
        assert [cell.removeprefix("'") for cell in row[1:4]] == [
            text.removeprefix("'") for text in texts
        ]
        assert not row[1].startswith(("=", "+", "-", "@"))
    said = [data.draw(st.sampled_from(["A", "B", "tie", ""])) for _ in rows]
    names = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    names[0] = True
    for row, verdict, named in zip(rows, said, names, strict=True):
        row[4] = data.draw(st.sampled_from([verdict, verdict.lower(), f" {verdict.upper()} "]))
        row[5] = name if named else ""
    order = data.draw(st.permutations(range(8)))
    table = [[*header, "note"], *([*row, "…\nsaid"] for row in data.draw(st.permutations(rows)))]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    writer.writerows([[row[i] for i in order] for row in table] + [[""] * 8])
    text = ("\ufeff" if marked else "") + file.getvalue()
    found = read(path, text, len(rows))
    assert found.annotator == " ".join(name.split())
    assert found.verdicts == {n: verdict for n, verdict in enumerate(said, 1) if verdict}
    assert set(found.blank) == {n for n, verdict in enumerate(said, 1) if not verdict}


@given(st.one_of(st.binary(max_size=200), TEXTS.map(str.encode)), st.integers(0, 80))
def test_anything_is_read_or_refused_in_one_line(path, noise, place):
    good = f"comparison,verdict,annotator,page\r\n1,A,Ana,{PAGE}\r\n2,tie,,{PAGE}\r\n".encode()
    for content in (noise, good[:place] + noise + good[place:], good[:place]):
        try:
            found = read(path, content)
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))
        else:
            assert found.annotator and set(found.verdicts) <= {1, 2, 3}


HEAD = "comparison,verdict,annotator,page\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f"{HEAD}1,A,Ana,{PAGE}\n4,A,Ana,{PAGE}\n",
            ":3: comparison '4' isn't on the page, expecte",
        ),
        (f"{HEAD}0,A,Ana,{PAGE}\n", ":2: comparison '0' isn't on the page, expected 1 to 3"),
        (f"{HEAD}1.0,A,Ana,{PAGE}\n", ":2: comparison '1.0' isn't"),
        (f"{HEAD}٣,A,Ana,{PAGE}\n", ":2: comparison '٣' isn't"),
        (f"{HEAD}1,A,Ana,{PAGE}\n1,A,Ana,{PAGE}\n", ":3: has comparison 1 again"),
        (f"{HEAD}1,,Ana,{PAGE}\n1,A,Ana,{PAGE}\n", ":3: has comparison 1 again"),
        (
            f'{HEAD}1,A,"An\na",{PAGE}\n2,C,An a,{PAGE}\n',
            ":4: got the verdict 'C', expected A, B or",
        ),
        (f"{HEAD}1,A,Ana,page-other\n", f":2: is of another page, 'page-other', expected '{PAGE}'"),
        (f"{HEAD}1,A,Ana,{PAGE}\n\n2,A,Ben,{PAGE}\n", ":4: is by 'Ben', expected 'Ana' as before"),
        (f"{HEAD}1,A,,{PAGE}\n", ": got '', expected a name of up to 80 characters in its column"),
        (f"{HEAD}1,A,{'x' * 81},{PAGE}\n", "expected a name of up to 80"),
        (f"{HEAD}1,A,Ana\n", ":2: got 3 cells, expected 4 as in the header"),
        (f'{HEAD}1,A,"Ana,{PAGE}\n', ":2: isn't CSV: unexpected end of data"),
        (
            "comparison,verdict,page\n",
            ":1: has 0 columns annotator, expected one of each of compar",
        ),
        ("page,comparison,verdict,annotator,page\n", ":1: has 2 columns page, expected one"),
        ("", ": is empty, expected CSV with the columns comparison, verdict"),
        (HEAD.encode() + b"1,A,\xff,x\n", ":2: isn't UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(path, content, message):
    with pytest.raises(UserError) as refused:
        read(path, content)
    text = str(refused.value)
    assert text.startswith(str(path)) and message in text and "\n" not in text


def test_a_tie_where_there_are_none(path):
    with pytest.raises(UserError, match=":2: got the verdict 'tie', expected A or B$"):
        read(path, f"{HEAD}1,tie,Ana,{PAGE}\n", ties=False)
    with pytest.raises(UserError, match="can't read .*none.csv: No such file"):
        verdict_files.read(str(path.with_name("none.csv")), PAGE, 3, True)


def test_a_long_response_and_controls_of_a_name(path):
    text = verdict_files.empty(PAGE, [("x", "y" * 200_000, "+1")])
    assert read(path, text.replace(",'+1,,,", ",'+1,b,A\x1b[31mna,"), 1).verdicts == {1: "B"}
    assert verdict_files.read(str(path), PAGE, 1, True).annotator == "A\\x1b[31mna"
