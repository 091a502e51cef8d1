"""A file's picture is MalNet's (spec patch_and_pretext 9)."""

from __future__ import annotations

import numpy as np
from core_helpers import Load

from belvedere.images.byteplots import byte_plot, row_width, squeezed


def test_a_file_with_sections_is_malnets_picture(golden: Load) -> None:
    g = golden("malware_byteplot")
    plot = byte_plot(g["raw"].numpy(), int(g["header_size"]), (int(g["data_off"]), int(g["data_size"])))
    assert np.array_equal(plot, g["image"].numpy())
    expected = g["resized_32"].numpy().astype(int)
    apart = np.abs(np.asarray(squeezed(plot, expected.shape[0])).astype(int) - expected)
    # Pillow before 12 rounds two of the 3,072 values otherwise, by six levels.
    assert (apart > 1).sum() <= 2
    assert apart.max() <= 6


def test_rows_are_as_wide_as_malnets(golden: Load) -> None:
    g = golden("malware_byteplot")
    assert [row_width(1000 * kb) for kb in g["width_query_kb"].tolist()] == g["width_expected"].tolist()
