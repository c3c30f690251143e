"""Configuration: pydantic at the door, recipes in TOML, one dotted override at a time. Imports no torch and no ray."""
