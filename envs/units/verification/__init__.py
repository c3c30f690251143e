"""Whether a unit is one: removing its channels must equal silencing them, alone (`verify`) and with all other units
at once (`together`); where that fails, which operator is to blame (`culprit`).
"""
