"""`python -m vidsparse` prints what is installed and what runs where."""

from .info import info

print(info())
