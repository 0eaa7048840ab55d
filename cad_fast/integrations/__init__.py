"""cad_fast as a part of other people's tools."""
