"""JUnit XML: a testsuite a subject, a testcase a check, with the elements that Jenkins' schema allows.

It holds no time and no host, so that the same result is the same bytes.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from toolkit.gate.result import Check, Outcome, Result

__all__ = ["junit_xml"]

_ELEMENT = {"failed": "failure", "error": "error", "skipped": "skipped"}
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TYPE = {"failed": "DriftError", "error": "StageError"}


def junit_xml(result: Result) -> str:
    """The document, as UTF-8 text with its declaration."""
    root = ElementTree.Element("testsuites", {"name": "toolkit gate", **_counts(result.outcomes)})
    root.extend(_suite(outcome) for outcome in result.outcomes)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _suite(outcome: Outcome) -> ElementTree.Element:
    skipped = sum(check.state == "skipped" for check in outcome.checks)
    suite = ElementTree.Element(
        "testsuite", {"name": outcome.subject, **_counts([outcome]), "skipped": str(skipped), "time": "0"}
    )
    suite.extend(_case(outcome, check) for check in outcome.checks)
    told = [*(f"better: {said}" for said in outcome.better), *outcome.notes]
    if told:
        ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(told))
    return suite


def _case(outcome: Outcome, check: Check) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=check.name, classname=f"gate.{outcome.subject}", time="0")
    if check.state != "passed":
        element = ElementTree.SubElement(case, _ELEMENT[check.state])
        text = _clean("\n".join(check.sentences))
        if check.state == "skipped":
            element.text = text
        else:
            element.set("type", _TYPE[check.state])
            element.set("message", _clean(check.sentences[0]))
            element.text = text
    return case


def _counts(outcomes: tuple[Outcome, ...] | list[Outcome]) -> dict[str, str]:
    states = [check.state for outcome in outcomes for check in outcome.checks]
    return {
        "tests": str(len(states)),
        "failures": str(states.count("failed")),
        "errors": str(states.count("error")),
    }


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 (section 2.2) has no way to write, as a terminal's escape."""
    return _UNWRITABLE.sub("\ufffd", text)
