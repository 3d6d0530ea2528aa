"""What can be taken out of crawled text before anything else sees it. Pure functions over one text."""

import re

_LONGEST = 120
"""Characters of a line that can be a marker."""

_URL = re.compile(
    r"(?:(?:https?|ftp)://|\bwww\.[\w-]+\.)[^\s<>\"'`]*[^\s<>\"'`.,;:!?)\]}]",
    re.IGNORECASE,
)

# Whole lines of a page's furniture, whatever stands before or after their words; never a line that says more.
_MARKERS = re.compile(
    r"[\W_]*(?:"
    r"read more|continue reading|click here|learn more|see also|related (?:posts?|articles?|links?)"
    r"|share (?:this|on|via)(?:[\W_]+(?:post|article|page|facebook|twitter|linkedin|email|pinterest))*"
    r"|(?:facebook|twitter|linkedin|pinterest|instagram|whatsapp|e-?mail|print)"
    r"|skip to (?:main )?content|back to top|table of contents|main menu|home|menu|search"
    r"|log ?in|sign (?:in|up)|subscribe"
    r"|advertisements?|sponsored(?: content)?|cookie (?:policy|settings|consent)|accept (?:all )?cookies"
    r"|privacy policy|terms of (?:use|service)|all rights reserved|copyright(?: ©)?(?: \d{4})?"
    r"|(?:leave|post) a (?:reply|comment)|\d* ?comments?|reply|next(?: (?:post|page))?|previous(?: (?:post|page))?"
    r"|page \d+(?: of \d+)?|(?:please )?enable javascript.*|javascript is (?:disabled|required).*"
    r")[\W_]*",
    re.IGNORECASE,
)


def remove_urls(text: str) -> str:
    """`text` without web addresses; the sentence's own full stop or bracket behind one stays."""
    return _URL.sub("", text) if "://" in text or "www." in text.lower() else text


def remove_crawl_markers(text: str) -> str:
    """`text` without lines that are nothing but what surrounds the text of a web page: menus, sharing, notices."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if len(line) > _LONGEST or not _MARKERS.fullmatch(line.strip()))


def has_words(text: str, least: int) -> bool:
    """Whether `text` has at least `least` words, parted by white space."""
    return least == 0 or len(text.split(maxsplit=least)) >= least
