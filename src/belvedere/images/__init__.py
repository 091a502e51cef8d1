"""Any pile of pictures, found, checked and decoded once into uint8 canvases.

`source` says which images there are, `decode` turns one of them into pixels, `survey` looks at all headers to
settle channels and depth, `canvases` keeps the decoded set on disk, and `check` reports on a set without training.
Only `canvases` needs torch, so the others are imported from their own modules.
"""
