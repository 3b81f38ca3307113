"""The page on which a person compares responses, drawn by `templates/people.html.j2`.

It is one file that works without a network. The texts stand in it as JSON, in which no character
means anything to HTML, and its script shows them as text alone. Its policy lets nothing but that
script run.
"""

from __future__ import annotations

import base64
import hashlib

from pit_jax.evaluation.people import Key
from pit_jax.report.page import environment


def to_html(key: Key) -> str:
    """Returns the page, which has nothing of what stands behind A and B."""
    found = environment()
    source = found.get_template("people.js").render()
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    data = {
        "page": key.page,
        "ties": key.ties,
        "comparisons": [item.shown for item in key.asked],
    }
    return found.get_template("people.html.j2").render(
        question=key.question,
        ties=key.ties,
        data=data,
        script=source,
        digest=digest,
    )
