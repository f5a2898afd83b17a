"""Examples out of Python source."""

from jaxlm.config.schema import Source
from jaxlm.data.examples import read_examples
from jaxlm.data.signatures import signatures

SOURCE = '''
def double(x: int, *, times: float = 2.0) -> float:
    """Multiply a number by
    another.

    More is said here.
    """

class Thing:
    def shout(self, *words, **how):
        """Say words loudly."""

    def _hidden(self):
        """Do what nobody sees."""

    def bare(self):
        return 1

    def brief(self):
        """Do it."""
'''


def test_a_public_function_that_says_what_it_does_is_an_example(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    assert [*signatures(tmp_path / "a.py")] == [
        (
            f"{tmp_path}/a.py:2",
            {
                "prompt": "Multiply a number by another.\n",
                "completion": "def double(x: int, *, times: float=2.0):",
            },
        ),
        (
            f"{tmp_path}/a.py:10",
            {"prompt": "Say words loudly.\n", "completion": "def shout(self, *words, **how):"},
        ),
    ]


def test_a_file_of_another_python_is_left_out(tmp_path):
    for name, text in (("a", b"print 'x'\n"), ("b", b"# coding: nothing\n"), ("c", b"'\xff'\n")):
        (tmp_path / f"{name}.py").write_bytes(text)
        assert [*signatures(tmp_path / f"{name}.py")] == []


def test_the_standard_library_holds_thousands():
    found = [example.completion for example in read_examples(Source(path="stdlib"))]
    assert len(found) > 2000 and all(line.startswith("def ") for line in found)
