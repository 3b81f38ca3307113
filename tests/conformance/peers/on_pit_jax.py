"""pit_jax: the tests of the suite, a property's are those that start with its name."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

from properties import PROPERTIES

ROOT = pathlib.Path(__file__).parents[3]


def version() -> str:
    """As the package has it, and the commit."""
    sys.path.insert(0, str(ROOT))
    import pit_jax

    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return f"{pit_jax.__version__} ({subprocess.check_output(commit, text=True).strip()})"


def suite() -> dict[str, tuple[str, str]]:
    """A property passes if all its tests do; a test that is expected to fail fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        tests = "tests/conformance/test_properties.py"
        command = [sys.executable, "-m", "pytest", "-q", tests, f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
        cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    found = {}
    for name in PROPERTIES:
        own = [case for case in cases if case.get("name", "").split("[")[0] == f"test_{name}"]
        wrong = [case for case in own if len(case)]
        if wrong:
            reason = f"{wrong[0].get('name')}: {wrong[0][0].get('message')}"
            found[name] = ("fail", reason)
        elif own:
            found[name] = ("pass", f"{len(own)} tests" if len(own) > 1 else "")
    return found


CHECKS = (suite,)
