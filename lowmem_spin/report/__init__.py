"""How it is shown: tables, pictures and the page, from stored results alone."""
