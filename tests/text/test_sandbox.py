"""What a chat template, which is a stranger's program, cannot do."""

import pytest

from jaxlm.core.errors import DataError
from jaxlm.text.chat import ChatTemplate

SAID = [{"role": "user", "content": "hello"}]

OUTSIDE = {
    "the classes of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "by a filter": "{{ (''|attr('__class__')).__mro__ }}",
    "by an item": "{{ messages['__class__'].__mro__ }}",
    "by a method's name": "{{ messages.index.__self__.x }}",
    "by a format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "by a format of a map": "{{ '{x.__class__.__mro__}'.format_map({'x': messages}) }}",
    "by a borrowed format": "{{ (''|attr('format'))('{0.__class__}', messages).__class__.x }}",
    "by a format found by a filter": "{{ ('{0.__class__.__mro__}'|attr('format'))(messages) }}",
    "by a mapped format": (
        "{% for f in ['{0.__class__.__mro__}']|map(attribute='format') %}{{ f(f) }}{% endfor %}"
    ),
    "by a mapped attribute": "{{ (messages|map(attribute='__class__')|first).__mro__ }}",
    "by a function": "{{ raise_exception.__globals__.x }}",
    "by a global": "{{ namespace.__init__.__globals__ }}",
    "by a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "by the loop": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "by the template": "{{ self.__init__.__globals__ }}",
    "by a frame": "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "by a name in a namespace": "{{ namespace(__html__=raise_exception) }}",
    "by a name set later": "{% set n = namespace() %}{% set n.__html__ = 1 %}",
    "by words together": "{{ (''|attr('__cl' ~ 'ass__')).__mro__ }}",
    "a file": "{% include '/etc/hostname' %}",
    "a module": "{% import 'os' as os %}{{ os }}",
}

CHANGES = {
    "a longer list": "{{ messages.append({}) }}",
    "an item of a message": "{{ messages[0].update({'role': 'system'}) }}",
    "no messages": "{{ messages.clear() }}",
    "by a filter": "{{ (messages|attr('pop'))() }}",
}

LOOP = "{% for i in range(99999) %}"
DOUBLED = "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(99) %}"
ENDLESS = {
    "a range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": LOOP * 3 + "{% endfor %}" * 3,
    "a loop that calls itself": "{% for i in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a wide loop that calls itself": (
        "{% for i in [1, 2] recursive %}{% set again = loop %}{% for j in range(9999) %}"
        "{% set x = again(range(9999)) if again.depth == 1 %}{% endfor %}{% endfor %}"
    ),
    "a macro that calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "products": "{% set n = namespace(a=3) %}" + LOOP + "{% set n.a = n.a * n.a %}{% endfor %}",
    "a repeated text": "{{ ('x' * 10**9)|length }}",
    "a repeated list": "{{ ([messages] * 10**9)|length }}",
    "a doubled text": "{% set n = namespace(a='x') %}"
    + LOOP
    + "{% set n.a = n.a + n.a %}{% endfor %}",
    "a text joined by ~": "{% set n = namespace(a='x') %}"
    + LOOP
    + "{% set n.a = n.a ~ n.a %}{% endfor %}",
    "lists in lists, printed": DOUBLED + "{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
    "lists in lists, compared": DOUBLED
    + "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "dicts in dicts": DOUBLED + "{% set n.a = dict(x=n.a, y=n.a) %}{% endfor %}",
    "keys of one value": DOUBLED + "{% set n.a = {}.fromkeys([1, 2], n.a) %}{% endfor %}",
    "filled up": DOUBLED + "{% set n.a = [n.a]|batch(2, n.a)|list %}{% endfor %}",
    "lists made again": LOOP + "{% set x = range(99999)|list %}{% endfor %}",
    "slices": "{% set x = 'x' * 300000 %}" + LOOP + "{% set y = [x[1:], x[2:]] %}{% endfor %}",
    "long literals": "{% set n = namespace(a=[]) %}"
    + LOOP
    + "{% set n.a = ["
    + "1," * 3000
    + "n.a] %}{% endfor %}",
    "a search": "{% set x = 'x' * 300000 %}" + LOOP * 2 + "{{ 'xxy' in x }}" + "{% endfor %}" * 2,
    "a replaced text": "{{ ('x' * 9999).replace('', 'x' * 9999)|length }}",
    "a joined text": "{{ ('x' * 9999).join('y' * 9999)|length }}",
    "a padded text": "{{ 'x'.ljust(10**9)|length }}",
    "a padded line": "{{ 'x'|center(10**9)|length }}",
    "an indented text": "{{ ('\n' * 9999)|indent(99999)|length }}",
    "indented JSON": "{{ messages|tojson(indent=10**9)|length }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big')|length }}",
    "a wide format": "{{ '{:>999999999}'.format(1)|length }}",
    "many wide formats": "{{ ('{:99999}' * 9999).format(*([1] * 9999))|length }}",
    "a format's argument": "{{ '{:{w}}'.format(1, w=10**9)|length }}",
    "a wide %": "{{ ('%999999999d' % 1)|length }}",
    "a wide % with a key": "{{ ('%(a)999999999d' % {'a': 1})|length }}",
    "a wide % by a filter": "{{ '%(a)999999999d'|format(a=1)|length }}",
    "an argument of %": "{{ ('%*d' % (10**9, 1))|length }}",
}


def refused(source):
    with pytest.raises(DataError) as raised:
        ChatTemplate(source, "chat_template.jinja").render(SAID)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("chat_template.jinja")
    return str(raised.value)


@pytest.mark.parametrize("attack", OUTSIDE)
def test_a_template_does_not_reach_outside(attack):
    message = refused(OUTSIDE[attack])
    assert any(word in message for word in ("unsafe", "cannot hold", "no loader"))


@pytest.mark.parametrize("attack", CHANGES)
def test_a_template_does_not_change_the_messages(attack):
    assert "unsafe" in refused(CHANGES[attack])


@pytest.mark.parametrize("attack", ENDLESS)
def test_a_template_ends(attack):
    refused(ENDLESS[attack])


def test_what_a_rendering_may_spend_grows_with_what_it_is_given():
    longest = [{"role": "user", "content": "word " * 200}] * 2000
    source = (
        "{% set n = namespace(all=[]) %}{% for m in messages %}"
        "{% if loop.index0 != messages|length %}{% set n.all = n.all + [m] %}{% endif %}"
        "{{ m.content.replace('word', 'another word').split('x')|join('y') | trim }}{% endfor %}"
    )
    assert len(ChatTemplate(source).render(longest).text) > 2000 * 1000
    assert len(ChatTemplate("{{ messages|tojson(indent=4) }}").render(longest).text) > 2000 * 1000


def test_objects_with_methods_are_not_handed_to_a_template(tmp_path):
    with pytest.raises(DataError, match="^messages: hold a PosixPath; use what JSON has$"):
        ChatTemplate("").render([{"role": "user", "content": [tmp_path]}])
