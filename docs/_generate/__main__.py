"""`python -m _generate`: write the folder that the site is built from."""

from _generate.pages import stage

stage()
