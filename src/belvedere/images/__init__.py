"""Any pile of pictures, found, checked and decoded once into uint8 canvases.

`source` says which images there are. Each kind of source has a file of its own (`files`, `arrays`, `shards`, `tables`,
`datasets`, and `blobs` for what lies behind a URL), and `items` is what they all come down to. `decode` turns one image
into pixels, `survey` looks at all headers to settle channels and depth, `canvases` keeps the decoded set on disk, and
`check` reports on a set without training. Only `canvases` needs torch, so the others are imported
from their own modules.
"""
