"""The rows of an org as SQL, from the catalog: what the comparators read and send.

The same models, columns, filters and ways to the org as the service's scan, without what it adds: groups, order, watermark.
"""

import tomllib
from pathlib import Path


def bench_catalog(text):
    """The demonstration's catalog with all that a snapshot holds in the bootstrap, comments and histories too.

    So a whole bootstrap, a scan, and every comparator handle the same rows.
    """
    return text.replace('load   = "partial"', 'load   = "lazy"').replace('load  = "partial"', 'load  = "lazy"')


class Catalog:
    def __init__(self, path, database):
        self.models = {model["name"]: model for model in tomllib.loads(Path(path).read_text())["models"]}
        sql = """SELECT table_name || ' ' || string_agg(column_name, ' ' ORDER BY ordinal_position)
                 FROM information_schema.columns WHERE table_schema = 'public' GROUP BY table_name"""
        tables = (line.split() for line in database.ask(sql).splitlines())
        self.columns = {table: columns for table, *columns in tables}

    def scanned(self):
        return [model for model in self.models.values() if model["load"] != "explicit"]

    def select(self, model, org, named):
        """The statement of a model's rows; `named` as they stand on the wire, with the class first."""
        columns = [name for name in self.columns[model["table"]] if name not in model.get("exclude", [])]
        if named:
            wire = model.get("rename", {})
            listed = [f"'{model['name']}' AS \"__class\""]
            listed += [f'r."{name}" AS "{wire.get(name) or camel(name)}"' for name in columns]
        else:
            listed = [f'r."{name}"' for name in columns]
        table, where = f"{rows_of(model)} r", None
        place, alias = model, "r"
        if "org" in model:
            where = f'r."{model["org"]}" = \'{org}\''
        # Up to the parents: their filters hold for what is below them.
        while "from" in place:
            parent = self.models[place["from"]["model"]]
            above = f"p{alias}"
            table += f' JOIN {rows_of(parent)} {above} ON {above}."{parent["id"]}" = {alias}."{place["from"]["by"]}"'
            if where is None and "org" in parent:
                where = f'{above}."{parent["org"]}" = \'{org}\''
            place, alias = parent, above
        return f"SELECT {', '.join(listed)} FROM {table} WHERE {where}"

    def selects(self, org, named=True):
        return [self.select(model, org, named) for model in self.scanned()]


def rows_of(model):
    if "filter" not in model:
        return f'"{model["table"]}"'
    return f'(SELECT * FROM "{model["table"]}" WHERE {model["filter"]})'


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
