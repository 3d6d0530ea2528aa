"""The shipped presets, one TOML file per row of the paper: package data of ``colakit.presets``."""
