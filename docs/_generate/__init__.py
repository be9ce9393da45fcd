"""What makes the site's pages out of docs/*.md and of the program itself; `python -m _generate`, docs/ on the path."""
