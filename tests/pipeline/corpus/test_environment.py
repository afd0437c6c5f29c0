from __future__ import annotations

import pytest

from pipeline.corpus.documents import Document
from pipeline.corpus.environment import manual_text, written_text
from pipeline.corpus.listing import open_corpus
from pipeline.corpus.readers import read_documents
from pipeline.corpus.roff import plain_text


@pytest.fixture(scope="module")
def corpus():
    return open_corpus("environment")


def test_it_has_packages_and_the_standard_library(corpus):
    sources = {file.source for file in corpus.files}
    assert {"numpy", "networkx", "python-asyncio", "python-json"} <= sources
    assert "soup-of-experts" not in sources


def test_names_are_unique_and_no_copies_or_tests_are_in_it(corpus):
    names = [file.name for file in corpus.files]
    assert len(set(names)) == len(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"_vendor", "vendored", "tests", "test", "externals", "__pycache__", "site-packages"}
    assert not any("LICENSE" in name or name.endswith("COPYING") for name in names)
    assert all(200 <= file.bytes <= 200_000 for file in corpus.files)


def test_documents_carry_package_and_path(corpus):
    file = next(file for file in corpus.files if file.name == "python/json/decoder.py")
    [document] = read_documents(corpus, file)
    assert isinstance(document, Document)
    assert (document.document_id, document.source) == ("python/json/decoder.py", "python-json")
    assert "class JSONDecoder" in document.text


def test_generated_minified_and_tables_are_left_out():
    prose = "A line of words that someone wrote.\n" * 20
    assert written_text(prose) == prose
    assert written_text("# This file is auto-generated. Do not edit.\n" + prose) is None
    assert written_text("var a=1;" * 200) is None
    assert written_text("0x1f, 0x2e, 0x99, 12345,\n" * 50) is None


def test_licence_headers_go_and_other_comments_stay():
    prose = "def function():\n    return 'what someone wrote'\n" * 10
    header = "#!/usr/bin/env python\n# Copyright 2024 The Authors.\n#\n# Licensed under terms.\n\n"
    assert written_text(header + prose) == prose
    assert written_text("# How this works.\n" + prose) == "# How this works.\n" + prose
    assert written_text(header) is None
    code = "#include <stdio.h>\n" + "int function(int argument);\n" * 10
    assert written_text("/*\n * Copyright: someone.\n */\n// More.\n\n" + code) == code
    inline = "/* counts */ int counter; /* licence key */\n"
    assert written_text(inline + code) == inline + code
    assert written_text("# This file was automatically generated.\n" + header + prose) is None


def test_manual_pages_lose_their_markup():
    page = (
        '.\\" a comment\n.TH LS 1 "2024"\n.SH NAME\nls \\- list \\fIdirectory\\fR contents\n'
        '.de XX\n.ft B\n..\n.SH DESCRIPTION\n.TP\n.BR \\-a ", " \\-\\-all\nshow \\(aqhidden\\(aq\n'
    )
    text = "NAME\n\nls - list directory contents\n\nDESCRIPTION\n\n-a, --all\nshow 'hidden'\n"
    assert plain_text(page) == text
    assert manual_text(".so man3/other.3\n") is None
