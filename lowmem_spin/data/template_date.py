"""Chat templates that write today's date, as those of Llama 3.2 and gpt-oss do, are given one date for good.

transformers gives templates a function strftime_now. A prompt would then be another one tomorrow: after a resumption, in a chat
with an iterate, or once it is served. So a macro of that name is put before the template's text, which knows the one date in
every form that the text asks for; whoever renders with that text writes it, too.
"""

import re
from datetime import date

NAME = "strftime_now"
ASKED = re.compile(rf"{NAME}\s*\(\s*(?:format\s*=\s*)?(\"[^\"]*\"|'[^']*')")
GIVEN = re.compile(r"\.get\(format, '(\d{4}-\d\d-\d\d)'\)")
DATED = f"{{% macro {NAME}("


def dated(template: str, day: str) -> str:
    """A template's text with every date in it fixed; one that writes none, or that has been given its own, as it is.

    Args:
        template: its text.
        day: the date, as YYYY-MM-DD.
    """
    if NAME not in template or DATED in template:
        return template
    forms = sorted({written[1:-1] for written in ASKED.findall(template)})
    known = {form: date.fromisoformat(day).strftime(form) for form in forms}
    return f"{DATED}format) %}}{{{{ {known!r}.get(format, {day!r}) }}}}{{% endmacro %}}{template}"


def notes(template: str, day: str) -> list[str]:
    """A line for who does not expect it, if a date is written; one that was fixed before, in a game's export, stays."""
    if NAME not in template:
        return []
    fixed = GIVEN.search(template)
    if fixed and fixed[1] != day:
        return [f"the chat template writes a date, its earlier game's, {fixed[1]}; data.template_date has no effect"]
    return [f"the chat template writes today's date; here it always writes that of data.template_date, {day}"]
