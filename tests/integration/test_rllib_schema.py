"""The schema file against the RLlib that is installed."""

from plato_core.training import schema


def test_the_schema_file_is_what_the_installed_rllib_gives() -> None:
    assert schema.generate() == schema.SCHEMA_FILE.read_text(encoding="utf-8"), (
        "regenerate it: python -m plato_core.training.schema --write"
    )
