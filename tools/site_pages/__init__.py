"""What the documentation site makes from the code: references, the figure, links that leave docs/.

`tools/site_hooks.py` calls these while MkDocs builds; nothing of what they make is committed.
"""
