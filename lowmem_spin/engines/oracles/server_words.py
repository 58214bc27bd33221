"""What servers say: that they have no such model, or the key they were given."""

import json
import re
from urllib.parse import quote

SECRET = 8  # characters of a key that is one: "none" or "EMPTY", as local servers take, is a word that replies may have


def repeated(key: str) -> re.Pattern[str] | None:
    """What finds a key in a server's text, however that may spell it; None where it is too short to be a secret."""
    spellings = {key, quote(key, safe=""), json.dumps(key)[1:-1], repr(key)[1:-1]}
    return re.compile("|".join(map(re.escape, spellings)), re.IGNORECASE) if len(key) >= SECRET else None


def says_no_such_model(why: str, model: str) -> bool:
    """Whether a refusal says that there is no model of this name: to name the model is not enough."""
    name = re.escape(model)
    lacks = r"\W+(is|was|does|do|could|can)?\W*(not|n['’]t)\W+(be\W+)?(found|exist|available|served|supported)"
    ways = (
        rf"\bmodels?(\W+{name})?{lacks}",
        rf"(?<!\w){name}({lacks}|\W+is\W+not\W+a\W+valid\W+model)",
        rf"\b(unknown|invalid|unrecognized|no\W+such)\W+model(\W+(id|name))?(\W+{name}(?!\w)|\W*$)",
        rf"\bno\W+model\W+((named|called|with)\W+)?{name}(?!\w)",
    )
    return any(re.search(way, why, re.IGNORECASE) for way in ways)
