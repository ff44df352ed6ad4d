"""One small file per architecture group; each lists `FAMILIES`. Adding one is described in docs/families.md."""
