"""The sections of RESULTS.md: each of those who measure replaces its own."""

HEAD = """# Measured

"Side by side" is what `make bench` found: how Headstart compares. The workspaces are what `make load` found: each run of all
scripts replaces the section of its scale. Clients, the service, PostgreSQL and the store share the machine's cores here, so
times are upper bounds of what the service alone would take.
"""


def keep(path, text):
    """Puts a section into the results, in the place of the one with the same heading, which is its first line."""
    there = path.read_text().split("\n## ")[1:] if path.exists() else []
    heading = text.splitlines()[0]
    others = [section.strip() + "\n" for section in there if section.splitlines()[0] != heading]
    path.write_text("\n## ".join([HEAD, *sorted([*others, text.strip() + "\n"])]))
