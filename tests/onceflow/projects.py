"""Projects of a user's, for tests."""

import json


def write_project(folder, definitions, **settings):
    """Write definitions and settings where the command line looks for them."""
    (folder / "features.py").write_text(definitions)
    (folder / "onceflow.toml").write_text("".join(f"{name} = {json.dumps(each)}\n" for name, each in settings.items()))
