"""What makes the site's pages out of docs/*.md and of the program itself; `python -m _generate` with docs/ on the path."""
