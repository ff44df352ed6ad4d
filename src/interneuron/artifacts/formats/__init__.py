"""Files of other tools: one small module per format, found by looking into this folder, never listed by hand.

    from interneuron.artifacts import formats

    found = formats.read("gemma-scope/layer_3")      # Imported: .value, .format, .notes
    formats.write(found.value, "out.gguf", "gguf")
    formats.inspect("some/file")                     # what it is, without reading tensors

A module of this package that holds a `FORMAT` is a format.
"""

from interneuron.artifacts.formats.format import Format, Imported
from interneuron.artifacts.formats.registry import all_formats, detect, format_named, inspect, read, write

__all__ = ["Format", "Imported", "all_formats", "detect", "format_named", "inspect", "read", "write"]
