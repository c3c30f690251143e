"""Configuration: checked by pydantic, recipes in TOML, one dotted override at a time. Imports no torch and no ray.

What a part can be told stands once: with the part on lower floors (their `settings` modules), for `amc` in `parts`.
"""
