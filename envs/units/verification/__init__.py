"""Whether a unit is one: removing its channels must equal silencing them, alone (`verify`, by a `trial`) and with all
other units at once (`together`); first `nearby`, on the operators that it touches. Where that fails, which operator is
to blame (`culprit`).
"""
